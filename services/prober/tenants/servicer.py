"""gRPC adapters of calibrations: what is known of tenants, and what an operator does with it."""
# ruff: noqa: ARG002, N802 -- gRPC names the methods and their arguments

from typing import Any

import grpc

from services.prober.dataplane import Dataplane
from services.prober.messages import prior_from_proto
from services.prober.metrics import ProberMetrics
from servox.v1 import prober_pb2 as pb

from .messages import calibration_to_proto

Context = grpc.aio.ServicerContext[Any, Any]


class TenantServicer:
    """The part of `Prober` that looks after calibrations."""

    _dataplane: Dataplane
    _metrics: ProberMetrics

    async def ListCalibrations(
        self, request: pb.ListCalibrationsRequest, context: Context
    ) -> pb.ListCalibrationsResponse:
        """Of one tenant, or of all."""
        with self._metrics.call("ListCalibrations"):
            states = await self._dataplane.tenants.states(request.tenant)
            return pb.ListCalibrationsResponse(calibrations=map(calibration_to_proto, states))

    async def FreezeCalibration(
        self, request: pb.FreezeCalibrationRequest, context: Context
    ) -> pb.FreezeCalibrationResponse:
        """Stops learning, or lets it go on."""
        with self._metrics.call("FreezeCalibration"):
            space = await self._dataplane.space(request.key.head)
            states = await self._dataplane.tenants.freeze(request.key.tenant, space, thaw=request.thaw)
            return pb.FreezeCalibrationResponse(calibrations=map(calibration_to_proto, states))

    async def ResetCalibration(
        self, request: pb.ResetCalibrationRequest, context: Context
    ) -> pb.ResetCalibrationResponse:
        """Forgets."""
        with self._metrics.call("ResetCalibration"):
            space = await self._dataplane.space(request.key.head)
            states = await self._dataplane.tenants.reset(request.key.tenant, space)
            return pb.ResetCalibrationResponse(calibrations=map(calibration_to_proto, states))

    async def ExportCalibration(
        self, request: pb.ExportCalibrationRequest, context: Context
    ) -> pb.ExportCalibrationResponse:
        """Statistics as JSON."""
        with self._metrics.call("ExportCalibration"):
            space = await self._dataplane.space(request.key.head)
            return pb.ExportCalibrationResponse(
                state_json=await self._dataplane.tenants.export(request.key.tenant, space)
            )

    async def ImportCalibration(
        self, request: pb.ImportCalibrationRequest, context: Context
    ) -> pb.ImportCalibrationResponse:
        """Statistics from JSON."""
        with self._metrics.call("ImportCalibration"):
            states = await self._dataplane.tenants.take_in(request.state_json, request.tenant)
            return pb.ImportCalibrationResponse(calibrations=map(calibration_to_proto, states))

    async def SetTenantPrior(self, request: pb.SetTenantPriorRequest, context: Context) -> pb.SetTenantPriorResponse:
        """What the tenant's own prior is."""
        with self._metrics.call("SetTenantPrior"):
            prior = prior_from_proto(request.prior) if request.prior.kind else None
            states = await self._dataplane.set_prior(request.key.tenant, request.key.head, prior)
            return pb.SetTenantPriorResponse(calibrations=map(calibration_to_proto, states))
