// What the browser itself does with sound: peaks for the waveform, and the microphone.

const RATE = 8000; // enough for a picture, and an hour in stereo stays under 250 MB
const LONGEST_S = 3600;
const BINS = 1200;

// The loudest sample of each of BINS equal parts, 0..1; null if there can be no picture.
export async function peaksOf(file, seconds) {
  if (seconds > LONGEST_S) return null;
  const context = new OfflineAudioContext(1, 1, RATE);
  const decoded = await context.decodeAudioData(await file.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  const peaks = new Float32Array(BINS);
  const step = decoded.length / BINS;
  for (let bin = 0; bin < BINS; bin += 1) {
    const end = Math.min(Math.ceil((bin + 1) * step), decoded.length);
    for (let at = Math.floor(bin * step); at < end; at += 1) {
      for (const channel of channels) peaks[bin] = Math.max(peaks[bin], Math.abs(channel[at]));
    }
  }
  const most = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => peak / most);
}

// The microphone as it is: what makes speech clearer makes music worse.
export function microphone() {
  return navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
}

// Records until `stop()` is called on what this resolves to; `stop` resolves to a File.
export async function record(name) {
  const stream = await microphone();
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  const ended = new Promise((resolve) => { recorder.onstop = resolve; });
  recorder.start(1000);
  return {
    lost: ended, // also when the microphone is unplugged, or taken away
    async stop() {
      if (recorder.state !== "inactive") recorder.stop();
      for (const track of stream.getTracks()) track.stop();
      await ended;
      return new File(pieces, name, { type: recorder.mimeType });
    },
  };
}
