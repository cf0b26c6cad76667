// Runs on the browser's audio thread: the mean of the channels, as 16-bit samples, a tenth of a second at a time.

class Samples extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  process([channels]) {
    const length = channels[0]?.length ?? 0;
    for (let at = 0; at < length; at += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      this.block[this.filled] = Math.max(-1, Math.min(sum / channels.length, 1)) * 32767;
      this.filled += 1;
      if (this.filled === this.block.length) this.#post();
    }
    return true;
  }

  #post() {
    this.port.postMessage(this.block.slice());
    this.filled = 0;
  }
}

registerProcessor("samples", Samples);
