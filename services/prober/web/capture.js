// The microphone, as mono samples at the device's own rate; the server resamples.
import { Problem } from "./service.js";

const WHY = {
  NotAllowedError: "Allow the microphone for this page in the browser's settings.",
  NotFoundError: "No microphone was found: connect one.",
  NotReadableError: "The microphone is in use by another program.",
};

export async function openMicrophone() {
  if (!navigator.mediaDevices) {
    throw new Problem({ title: "No microphone here", detail: "Browsers give it to pages from https:// or localhost only." });
  }
  let stream;
  try {
    // What a browser does to please listeners (gain, noise) changes the voice.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Problem({ title: "The microphone cannot be opened", detail: WHY[error.name] ?? error.message });
  }
  const microphone = new Microphone(stream, new AudioContext());
  try {
    await microphone.context.audioWorklet.addModule("static/worklet.js");
  } catch (error) {
    await microphone.stop();
    throw new Problem({ title: "The microphone cannot be opened", detail: error.message });
  }
  return microphone;
}

class Microphone {
  constructor(stream, context) {
    Object.assign(this, { stream, context, rate_hz: context.sampleRate });
  }

  // Calls `each` with samples until `stop`; `lost` when the device goes away.
  start(each, lost) {
    this.node = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    this.stopped = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => (data ? each(data) : resolve());
    });
    this.context.createMediaStreamSource(this.stream).connect(this.node);
    this.stream.getTracks()[0].onended = lost;
  }

  // Resolves once the last samples were handed over; a second call is the first.
  stop() {
    this.stopping ??= this.close();
    return this.stopping;
  }

  async close() {
    if (this.node) {
      this.node.port.postMessage("flush");
      await Promise.race([this.stopped, new Promise((resolve) => setTimeout(resolve, 500))]);
    }
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}
