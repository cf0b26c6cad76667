// node tag_file.mjs CLIP
import { readFile } from "node:fs/promises";
import { tag } from "./tag.mjs";

const { MUSIC_TAGGER_URL: url, MUSIC_TAGGER_KEY: key } = process.env;
const answer = await tag(await readFile(process.argv[2]), { url, key });
for (const { tag, score } of answer.tags) console.log(tag, score.toFixed(2));
