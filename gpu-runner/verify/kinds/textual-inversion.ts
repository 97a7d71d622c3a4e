/** A textual inversion in a prompt: the ids, the rows behind them, and the text encoders' states. */
import { z } from "zod";
import { adapterDiskFiles, hashAdapterFiles } from "../../adapters/content-hash.ts";
import { openTextualInversion } from "../../adapters/textual-inversion.ts";
import type { DiffusionModel, TensorF32 } from "../../components.ts";
import { promptChunks } from "../../prompt/chunks.ts";
import { tokenizersOf } from "../../tokenizer/model-tokenizers.ts";
import { openModel } from "../../weights/model-source.ts";
import { withSafetensors } from "../../weights/safetensors.ts";
import { sortKeys } from "../../weights/sorted-keys.ts";
import type { GoldenCase, GoldenTensor, VerifyContext, VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { textStates } from "./adapter-outputs.ts";

const paramsSchema = z.object({ prompt: z.string(), token: z.string(), vocab: z.int().positive() });

export const textualInversionKind: VerifyKind = {
  kind: "textual-inversion",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { prompt, token, vocab } = paramsSchema.parse(goldenCase.params);
    const model = await context.model();
    const { vectors } = await openedInversion(goldenCase, context, model);
    const rows = vectors.find(found => found !== null)!.shape[0]!;
    const word = { word: token, ids: Array.from({ length: rows }, (_, i) => vocab + i) };
    const ids = tokenizersOf(model.description).map(tokenizer => tokenizer.chunk(promptChunks(prompt, "plain", tokenizer, [word])[0]!.ids));
    const encoders = ids.map((list, i) => ({ inputIds: [list], ...(vectors[i] && { extraEmbeddings: vectors[i] }) }));
    return {
      ids: { json: ids[0] },
      firstNewId: { json: vocab },
      ...(ids[1] && { ids2: { json: ids[1] }, input_ids_2: idTensor(ids[1]) }),
      input_ids: idTensor(ids[0]!),
      token_embeds: tokenRows(context.modelPath, ids[0]!, vocab, vectors[0] ?? null),
      ...(await textStates(model, encoders)),
    };
  },
};

/** One file, or one per text encoder: they are one inversion. */
async function openedInversion({ adapters = [] }: GoldenCase, context: VerifyContext, model: DiffusionModel) {
  const files = adapters.flatMap(({ file }) => adapterDiskFiles(context.path(file)));
  const encoders = adapters.flatMap(({ textEncoder }) => (textEncoder === undefined ? [] : [textEncoder - 1]));
  return openTextualInversion(files, await hashAdapterFiles(files), model.weightShapes, encoders.length > 0 ? encoders : undefined);
}

function idTensor(ids: readonly number[]): GoldenTensor {
  return { data: ids, shape: [1, ids.length] };
}

/** Rows of the first encoder's table, read from the model's file, and of the inversion. */
function tokenRows(modelPath: string, ids: readonly number[], vocabulary: number, extra: TensorF32 | null): TensorF32 {
  const { file, entry } = sortKeys(openModel(modelPath)).tensors.get("textEncoder")!.get("embeddings.token_embedding.weight")!;
  const width = entry.shape[1]!;
  const data = new Float32Array(ids.length * width);
  withSafetensors(file, source =>
    ids.forEach((id, i) => {
      const start = (id - vocabulary) * width;
      data.set(id < vocabulary ? source.readFloat32(entry.name, id * width, width) : extra!.data.subarray(start, start + width), i * width);
    }),
  );
  return { data, shape: [1, ids.length, width] };
}
