/** What a study asks of the two products: a training whose files are kept, and the scores of such files. */
import type { ScoringSettings } from "../shared/training.ts";
import type { TrainingCreate, TrainingView } from "../shared/training-api.ts";
import type { NamedFile, StudyClient } from "./client.ts";
import type { StudyPicture } from "./concepts.ts";
import type { Kept } from "./kept.ts";
import { type Cost, type Evaluated, evaluatedSchema, type Trained, trainedSchema } from "./results.ts";

export interface Concept {
  token: string;
  /** What it is an instance of. */
  class_prompt: string | null;
}

export interface TrainingAsked {
  /** None of what is scored is among them. */
  pictures(): Promise<readonly StudyPicture[]>;
  concepts: readonly Concept[];
  body: Partial<TrainingCreate> & Pick<TrainingCreate, "settings">;
}

/** Names of products are taken once: a study that was cut off begins its part anew under another. */
const newName = () => `study-${crypto.randomUUID().slice(0, 8)}`;

const wallSeconds = ({ job }: TrainingView) => (Date.parse(job.finished_at!) - Date.parse(job.created_at)) / 1000;

/** Trains unless that was done before. @param part name of what is kept */
export function trained(trainer: StudyClient, kept: Kept, part: string, { pictures, concepts, body }: TrainingAsked): Promise<Trained> {
  return kept.part(part, trainedSchema, async () => {
    const view = await trainer.train({
      ...body,
      ...{ name: newName(), model: "pocket", resolution: 128, seed: 1, concepts },
      dataset: await trainer.dataset(part, await pictures()),
      // The serving product scores and draws.
      ...{ scoring: { pictures: 0 }, sample_prompts: ["a cube"], sample_every: 100_000, sampling: { steps: 4 } },
    });
    const files = await trainer.files(view);
    for (const { path, bytes } of files) kept.write(`${part}/${path}`, bytes);
    return {
      tokens: concepts.map(({ token }) => token),
      report: view.report!,
      files: files.map(({ path }) => path),
      wall_seconds: wallSeconds(view),
    };
  });
}

export interface EvaluationAsked {
  files: readonly NamedFile[];
  /** Held-out ones, generic ones, and at least one of split `train`, which is not used. */
  pictures: readonly StudyPicture[];
  concepts: readonly Concept[];
  scoring: Partial<ScoringSettings>;
  /** Drawn by the base and with the adapter, into `<part>.png`; few, for time. */
  prompts: readonly string[];
}

/** The scores of an exported file by a product that knows nothing else. */
export function evaluated(server: StudyClient, kept: Kept, part: string, asked: EvaluationAsked): Promise<Evaluated> {
  return kept.part(part, evaluatedSchema, async () => {
    const name = newName();
    const adapter = await server.upload(name, asked.files, null);
    const view = await server.train({
      ...{ name: `${name}-scores`, model: "pocket", resolution: 128, seed: 11, concepts: asked.concepts, scoring: asked.scoring },
      settings: { method: "evaluation", adapter },
      dataset: await server.dataset(part, asked.pictures),
      sample_prompts: asked.prompts,
    });
    const { scores, picture_losses } = view.report!;
    if (!scores || !picture_losses) throw new Error(`${part}: expected scores of an evaluation, got none`);
    const grid = (await server.files(view)).find(({ path }) => path === "samples.png");
    if (grid) kept.write(`${part}.png`, grid.bytes);
    return { scores, picture_losses, wall_seconds: wallSeconds(view) };
  });
}

/** The files below a folder of a training's result, or the first layout that serves as it stands. */
export function exportedFiles(kept: Kept, part: string, { files }: Trained, folder?: string): NamedFile[] {
  const adapter = /\.safetensors$/;
  const found = folder === undefined ? files.filter(file => adapter.test(file)).slice(0, 1) : files.filter(file => file.startsWith(folder));
  if (found.length === 0) throw new Error(`${part}: expected an exported adapter, got ${files.join(", ")}`);
  return found.map(path => {
    const bytes = kept.read(`${part}/${path}`);
    if (!bytes) throw new Error(`${part}: expected the file ${path}, got none`);
    return { path: folder === undefined ? path.slice(path.lastIndexOf("/") + 1) : path, bytes };
  });
}

export function costOf({ report, wall_seconds }: Trained): Cost {
  const { steps, ended_by, seconds, trained_parameters, peak_memory_bytes, losses } = report;
  return { steps, ended_by, seconds, wall_seconds, parameters: trained_parameters, peak_memory_bytes, losses: smoothed(losses) };
}

const shownPoints = 50;

/** Means over equal parts of a curve. */
function smoothed(curve: readonly (readonly [number, number])[]): [number, number][] {
  const size = Math.max(Math.ceil(curve.length / shownPoints), 1);
  return Array.from({ length: Math.ceil(curve.length / size) }, (_, i) => {
    const part = curve.slice(i * size, (i + 1) * size);
    const mean = part.reduce((sum, [, loss]) => sum + loss, 0) / part.length;
    return [part.at(-1)![0], Number(mean.toFixed(4))];
  });
}
