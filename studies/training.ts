/** One training of a study: asked for, downloaded, kept. */
import type { TrainingCreate } from "../shared/training-api.ts";
import type { NamedFile, StudyClient } from "./client.ts";
import type { StudyPicture } from "./concepts.ts";
import type { Kept } from "./kept.ts";
import { type Trained, trainedSchema } from "./results.ts";

export interface TrainingAsked {
  pictures(): Promise<readonly StudyPicture[]>;
  /** One per concept. */
  tokens: readonly string[];
  /** What each concept is an instance of. */
  classPrompt: string | null;
  body: Partial<TrainingCreate> & Pick<TrainingCreate, "settings">;
}

/** Trains unless that was done before. @param part name of what is kept */
export function trained(trainer: StudyClient, kept: Kept, part: string, asked: TrainingAsked): Promise<Trained> {
  return kept.part(part, trainedSchema, async () => {
    const name = part.replaceAll("/", "-");
    const view = await trainer.train({
      ...asked.body,
      name,
      model: "pocket",
      dataset: await trainer.dataset(name, await asked.pictures()),
      concepts: asked.tokens.map(token => ({ token, class_prompt: asked.classPrompt })),
      resolution: 128,
    });
    const files = await trainer.files(view);
    for (const { path, bytes } of files) kept.write(`${part}/${path}`, bytes);
    return { token: asked.tokens[0] ?? "", report: view.report!, files: files.map(({ path }) => path) };
  });
}

/** The exported adapter among the files of a training: the first one that serves as it stands. */
export function exported(kept: Kept, part: string, { files }: Trained): NamedFile {
  const path = files.find(file => file.endsWith(".safetensors") && !/checkpoint|unet\/|text_encoder\//.test(file));
  const bytes = path && kept.read(`${part}/${path}`);
  if (!path || !bytes) throw new Error(`${part}: expected an exported adapter among ${files.join(", ")}`);
  return { path: path.slice(path.lastIndexOf("/") + 1), bytes };
}
