"""Which NVIDIA GPU is here, asked of the driver itself: no package of ours depends on one.

`cuInit` fails where there is no driver or no device, and says which; nothing is started and no memory is taken.
"""

import ctypes
from dataclasses import dataclass

from servox.errors import Unavailable

DRIVER, MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
NAME_BYTES = 128
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The first device that this process may use: `capability` as in 9.0, `cuda` the newest that the driver speaks."""

    name: str
    capability: str
    driver: str
    cuda: str


def find() -> Gpu:
    """The GPU of this process.

    Raises:
        Unavailable: when there is no driver or no device.
    """
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        raise Unavailable(f"there is no CUDA device here: no NVIDIA driver ({DRIVER} is missing)") from None
    status = cuda.cuInit(0)
    if status:
        why = "no device is visible" if status == NO_DEVICE else f"the driver answers with error {status}"
        raise Unavailable(f"there is no CUDA device here: {why}; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    device, name, version = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, NAME_BYTES, device)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(),
        capability=f"{_attribute(cuda, MAJOR, device)}.{_attribute(cuda, MINOR, device)}",
        driver=_driver_version(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(cuda: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _driver_version() -> str:
    try:
        management = ctypes.CDLL(MANAGEMENT)
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(NAME_BYTES)
    if management.nvmlInit_v2() or management.nvmlSystemGetDriverVersion(text, NAME_BYTES):
        return "unknown"
    return text.value.decode()
