// The page's words. A key that a language lacks falls back to English; problems fall back to the service's words.

const en = {
  skip: "Skip to the content", site: "Site", api: "API", themeAuto: "Theme: system", themeLight: "Theme: light", themeDark: "Theme: dark",
  dropTitle: "Drop music here",
  dropHint: "Or choose files, paste them, or record. A clip may last from 1 second to 2 hours.",
  choose: "Choose files", record: "Record", stop: "Stop {0}", recording: "Recording",
  orLive: "Or tag live, as it sounds:", liveMicrophone: "Microphone", liveFile: "A file as it plays", liveStop: "Stop",
  live: "Live: {0}", liveWaiting: "Listening. The first scores come after {0} s",
  liveFacts: "The last {0} s, scored {1} ms after they were heard",
  liveGone: "The sound was not kept, so it cannot be played. The scores stand.",
  orSample: "Or try a sample:", sampleSong: "Sung pop", sampleClub: "Club track", sampleOrchestra: "Film cue",
  keyLabel: "This service asks for a key", keySave: "Use it", keyTaken: "Key accepted", keyProblem: "{0}. {1}",
  play: "Play", pause: "Pause", again: "Try again", cancel: "Cancel", remove: "Remove",
  waiting: "Waiting for its turn", uploading: "Uploading, {0} %", analysing: "Listening", retrying: "The service is busy. Trying again in {0} s",
  reconnecting: "No connection to the service. Trying again in {0} s",
  timeline: "Over time", timelineHelp: "Click to play from there. With the keyboard: arrows move, Enter plays, Space pauses.",
  stage: "Position in the clip", threshold: "Threshold {0}", present: "applies", absent: "does not apply",
  facts: "{0} · {1} · {2} Hz · {3}", mono: "mono", stereo: "stereo", channels: "{0} channels",
  noWave: "This browser cannot decode the clip, so there is no waveform and it cannot be played. The scores stand.",
  longWave: "The clip is too long for a waveform in the browser. The scores stand.",
  clips: "Clips", filter: "Filter", carries: "Tag", any: "any", clear: "Clear", againAll: "Try failed again",
  name: "Clip", duration: "Length", shown: "{0} of {1} clips shown",
  privacy: "Nothing of a clip is kept after its answer. The scores are independent: they do not sum to one.",
  credits: "Credits of the samples", creditsText: "All three were made for this project and are in the public domain (CC0).",
  model: "Model {0} {1}, on {2}", done: "{0}: {1}", nothing: "no tag applies",
};

const zh = {
  skip: "跳到正文", site: "站点", api: "接口", themeAuto: "主题：跟随系统", themeLight: "主题：浅色", themeDark: "主题：深色",
  dropTitle: "把音乐拖到这里",
  dropHint: "也可以选择文件、粘贴或录音。长度从 1 秒到 2 小时。",
  choose: "选择文件", record: "录音", stop: "停止 {0}", recording: "录音",
  orLive: "或边听边打标签：", liveMicrophone: "麦克风", liveFile: "播放文件", liveStop: "停止",
  live: "实时：{0}", liveWaiting: "正在聆听，{0} 秒后给出首批得分",
  liveFacts: "最近 {0} 秒的得分，延迟 {1} 毫秒",
  liveGone: "声音未被保留，因此无法播放。得分仍然有效。",
  orSample: "或试听示例：", sampleSong: "流行演唱", sampleClub: "俱乐部舞曲", sampleOrchestra: "电影配乐",
  keyLabel: "此服务需要密钥", keySave: "使用", keyTaken: "密钥有效", keyProblem: "{0}。{1}",
  play: "播放", pause: "暂停", again: "重试", cancel: "取消", remove: "移除",
  waiting: "等待中", uploading: "正在上传，{0} %", analysing: "正在聆听", retrying: "服务繁忙，{0} 秒后重试",
  reconnecting: "无法连接到服务，{0} 秒后重试",
  timeline: "随时间变化", timelineHelp: "点击可从该处播放。键盘：方向键移动，回车播放，空格暂停。",
  stage: "片段中的位置", threshold: "阈值 {0}", present: "符合", absent: "不符合",
  facts: "{0} · {1} · {2} Hz · {3}", mono: "单声道", stereo: "立体声", channels: "{0} 声道",
  noWave: "此浏览器无法解码该片段，因此没有波形，也无法播放。得分仍然有效。",
  longWave: "片段太长，浏览器无法显示波形。得分仍然有效。",
  clips: "片段", filter: "筛选", carries: "标签", any: "不限", clear: "清空", againAll: "重试失败的",
  name: "片段", duration: "时长", shown: "显示 {0} / {1} 个片段",
  privacy: "得出结果后不保留片段的任何内容。各项得分相互独立，总和不为一。",
  credits: "示例的来源", creditsText: "三段示例均为本项目制作，属于公有领域（CC0）。",
  model: "模型 {0} {1}，运行于 {2}", done: "{0}：{1}", nothing: "没有符合的标签",
};

const zhTags = { vocal: "人声", dance: "舞曲", soundtrack: "配乐", pop: "流行" };

// By the words that they translate: other words about a tag, of another model, stay as they are.
const zhMeanings = {
  "a human voice sings, raps or chants as part of the music (solo, choir, chopped hook)": "音乐中有人演唱、说唱或吟诵",
  "made to dance to: a steady beat carries it (house, techno, trance, disco, drum and bass, dance-pop, eurobeat)": "为跳舞而作：由稳定的节拍推动",
  "written as, or sounds as, music to picture: film, series, game, trailer score": "为影像而作，或听起来如此",
  "popular-song idiom: verse and hook, contemporary production": "流行歌曲的写法：主歌与副歌，当代制作",
};

// Title and hint by problem, in the words of somebody at a page; a problem without a row keeps the service's words.
const enProblems = {
  "no-clip": ["There is no clip", "Choose an audio file."],
  "empty-clip": ["The file is empty", "Choose a file with something in it."],
  "key-missing": ["A key is needed", "Type the key into the field above. Whoever runs this service gives it out."],
  "key-wrong": ["The key is wrong", "Ask whoever runs this service for a key that is valid."],
  "stream-idle": ["The sound stopped", "Start again."],
  "origin": ["Live listening does not work from this address", "Tell whoever runs the service."],
  "listeners-full": ["Too many people listen at once", "Try again in a minute."],
  "slow-body": ["The upload took too long", "Use a faster connection, or a smaller file: MP3 or Opus instead of WAV."],
  "too-many-bytes": ["The file is too large", "Use a compressed file (MP3, Opus, M4A), or a part of the song."],
  "too-many-seconds": ["The clip is too long", "Cut out a part of it, and try that."],
  "too-short": ["The clip is too short", "Choose a longer one."],
  "silent": ["The clip is silent", "Choose one in which something sounds."],
  "queue-full": ["The service is busy", "Try again in a moment."],
  "bytes-full": ["The service is busy", "Try again in a moment."],
  "internal": ["Something went wrong in the service", "Try again. If it fails again, tell whoever runs the service."],
  "batch-failed": ["Something went wrong in the service", "Try again. If it fails again, tell whoever runs the service."],
  "not-ready": ["The service is starting", "Try again in a moment."],
  "draining": ["The service is restarting", "Try again in a moment."],
  "late-in-queue": ["The service is busy", "Try again in a moment."],
  "late-at-work": ["This took too long", "Try again later, or with a part of the song."],
};
// Their details say something to a listener: how long, how large.
const TELLING = ["slow-body", "too-many-bytes", "too-many-seconds", "too-short"];

const zhProblems = {
  "unreachable": ["无法连接到服务", "请检查网络后重试。"],
  "no-clip": ["没有片段", "请选择一个音频文件。"],
  "empty-clip": ["文件是空的", "请选择一个有内容的音频文件。"],
  "key-missing": ["需要密钥", "请输入服务管理员给您的密钥。"],
  "key-wrong": ["密钥不正确", "请向服务管理员索取有效的密钥。"],
  "key-impossible": ["这不可能是密钥", "其中有密钥不能包含的字符，可能不可见。请重新复制，不要带上其他字符。"],
  "unforeseen": ["页面出错", "请重试；若仍然失败，请重新加载页面。"],
  "stream-idle": ["音频流已停止", "请重新开始。"],
  "origin": ["此网站不能使用实时服务", "请联系服务管理员。"],
  "listeners-full": ["同时收听的人太多", "请稍后重试。"],
  "no-sound": ["无法播放该文件", "请选择此浏览器能播放的音频文件。"],
  "slow-body": ["上传太慢", "请换用更快的网络，或发送较小的文件，例如用 MP3 或 Opus 代替 WAV。"],
  "too-many-bytes": ["文件太大", "请发送压缩文件（MP3、Opus、M4A）或歌曲的一部分。"],
  "too-many-seconds": ["片段太长", "请截取其中一部分。"],
  "not-audio": ["这不是可识别的音频", "请发送 WAV、FLAC、MP3、OGG/Vorbis、Opus、M4A/AAC、WebM 或 AIFF。"],
  "undecodable": ["音频无法解码", "请确认文件在别处可以播放，然后重新导出。"],
  "too-short": ["片段太短", "请发送更长的片段。"],
  "silent": ["片段没有声音", "请发送有声音的部分。"],
  "queue-full": ["服务繁忙", "请稍后重试。"],
  "bytes-full": ["同时上传的内容太多", "请稍后重试。"],
  "internal": ["服务出错", "请重试；若仍然失败，请联系服务管理员。"],
  "batch-failed": ["模型在处理该片段时出错", "请重试；若仍然失败，请联系服务管理员。"],
  "not-ready": ["服务尚未就绪", "请稍后重试。"],
  "draining": ["服务正在停止", "请稍后重试。"],
  "late-in-queue": ["等待超时", "请稍后重试。"],
  "late-at-work": ["处理超时", "请截取其中一部分后重试。"],
  "insecure": ["通过 http 打开的页面无法录音或实时聆听", "请用 https 打开此页面，或在服务所在的机器上用 localhost 打开。仍可拖放或选择文件。"],
  "unreadable": ["无法读取该文件", "它是文件夹，或已被移动、删除。请重新选择。"],
  "no-microphone": ["无法使用麦克风", "请在浏览器中允许此页面使用麦克风。"],
};

export const languages = { en: "English", zh: "中文" };
let language = pick();

function pick() {
  try {
    const stored = localStorage.getItem("language");
    if (stored in languages) return stored;
  } catch { /* storage may be forbidden */ }
  return (navigator.language ?? "").toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const other = () => (language === "en" ? "zh" : "en");
export const locale = () => (language === "zh" ? "zh-CN" : "en");

export function use(name) {
  language = name;
  try { localStorage.setItem("language", name); } catch { /* it holds for this page at least */ }
}

export function say(name, ...values) {
  const text = (language === "zh" ? zh[name] : undefined) ?? en[name] ?? name;
  return text.replace(/\{(\d)\}/g, (_, index) => values[index]);
}

const translated = (words, dictionary) => (language === "zh" && Object.hasOwn(dictionary, words) ? dictionary[words] : words);
export const tagName = (tag) => translated(tag, zhTags);
export const tagMeaning = (meaning) => translated(meaning, zhMeanings);

export function sayProblem(problem) {
  const words = { en: enProblems, zh: zhProblems }[language];
  if (!Object.hasOwn(words, problem.slug)) return problem;
  const [title, hint] = words[problem.slug];
  const told = language === "en" ? TELLING.includes(problem.slug) : false; // details are English
  return { title, hint, detail: told || /^HTTP \d+$/.test(problem.detail) ? problem.detail : "" };
}

// Puts the language's words into the whole document.
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
}
