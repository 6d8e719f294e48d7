// Runs in the audio thread: hands over 100 ms of the first channel at a time.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Float32Array(Math.round(sampleRate / 10));
    this.count = 0;
    this.port.onmessage = () => {
      this.port.postMessage(this.held.slice(0, this.count));
      this.port.postMessage(null);
      this.count = 0;
    };
  }

  process([channels]) {
    const samples = channels[0] ?? new Float32Array(0);
    for (let at = 0; at < samples.length;) {
      const part = samples.subarray(at, at + this.held.length - this.count);
      this.held.set(part, this.count);
      this.count += part.length;
      at += part.length;
      if (this.count === this.held.length) {
        this.port.postMessage(this.held.slice());
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
