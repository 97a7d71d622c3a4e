import { beforeAll, describe, expect, it } from "vitest";
import { moveTags } from "../../edge/prompt-tags.ts";
import { type GenerationRequest, generationRequestSchema } from "../../shared/generation.ts";
import { loraFile, uploadAdapter } from "./files.ts";
import { call, generateMiss, newKey, readGeneration, registerModel } from "./support.ts";

const move = (changes: Record<string, unknown>) =>
  moveTags(generationRequestSchema.parse({ prompt: "x", prompt_syntax: "a1111", ...changes })).request;
const lora = (adapter: string, te: number, unet = te) => ({ adapter, kind: "lora", weight: unet, text_encoder_weight: te });

describe("tags", () => {
  it.each([
    ["a <lora:style> b", "a  b", [lora("style", 1)]],
    ["<lora:style:0.8>, a", ", a", [lora("style", 0.8)]],
    ["a<lora:style:0.5:0.7>", "a", [lora("style", 0.5, 0.7)]],
    ["a<lora:style:te=0.5:unet=-.25>", "a", [lora("style", 0.5, -0.25)]],
    ["a<lora:style:unet=0.25>", "a", [lora("style", 1, 0.25)]],
    ["a<lyco:style:2>", "a", [lora("style", 2)]],
    ["a<lora:folder/My style (v2):1>", "a", [lora("My_style__v2_", 1)]],
    ["a<hypernet:net:0.3>", "a", [{ adapter: "net", kind: "hypernetwork", weight: 0.3 }]],
    ["(a <lora:x:1>:1.2) [b:<lora:y>c:0.5]", "(a :1.2) [b:c:0.5]", [lora("x", 1), lora("y", 1)]],
    ["a <other:x:1> < lora", "a <other:x:1> < lora", []],
  ])("%s", (prompt, text, adapters) => {
    expect(move({ prompt })).toMatchObject({ prompt: text, adapters });
  });

  it("come behind what the request names, and the text of other syntaxes stays as it is", () => {
    const prompt = "a <lora:style:0.8>";
    expect(move({ prompt, adapters: [{ adapter: "first" }] }).adapters).toEqual([{ adapter: "first" }, lora("style", 0.8)]);
    const plain: GenerationRequest = generationRequestSchema.parse({ prompt, prompt_syntax: "plain" });
    expect(moveTags(plain).request).toEqual(plain);
  });

  it.each(["<lora::1>", "<lora:x:much>", "<lora:x:11>", "<lora:x:1:1:8>", "<lora:x:dyn=8>", "<hypernet:x:1:1>", "<lora:x:>"])(
    "%s is refused",
    tag => {
      expect(() => move({ prompt: `a ${tag}` })).toThrow(
        expect.objectContaining({ errors: [expect.objectContaining({ field: "prompt", got: tag })] }),
      );
    },
  );

  it("alone are no prompt, and count among the adapters", () => {
    expect(() => move({ prompt: "<lora:x>" })).toThrow(expect.objectContaining({ errors: [expect.objectContaining({ field: "prompt" })] }));
    const prompt = `a${"<lora:x>".repeat(33)}`;
    expect(() => move({ prompt })).toThrow(expect.objectContaining({ errors: [expect.objectContaining({ got: "33" })] }));
  });

  it("of a picture's own prompt are that picture's", () => {
    const { per_image } = move({
      prompt: "a <lora:x>",
      adapters: [{ adapter: "first" }],
      per_image: [{}, { prompt: "b <lora:y>" }, { prompt: "c" }, { prompt_syntax: "plain" }, { adapters: [] }],
    });
    expect(per_image).toEqual([
      {},
      { prompt: "b ", adapters: [{ adapter: "first" }, lora("y", 1)] },
      { prompt: "c", adapters: [{ adapter: "first" }] },
      { prompt: "a <lora:x>", prompt_syntax: "plain", adapters: [{ adapter: "first" }] },
      { adapters: [lora("x", 1)] },
    ]);
  });
});

describe("POST /v1/generations with tags", () => {
  let key: string;
  beforeAll(async () => {
    await registerModel();
    ({ key } = await newKey());
    await uploadAdapter(key, "tagged", loraFile(96, 2, 700));
  });

  it("is what the same request with adapters is", async () => {
    const tagged = await generateMiss(key, { prompt: "a cube<lora:tagged:0.5>", prompt_syntax: "a1111", seed: 1 });
    const named = { prompt: "a cube", prompt_syntax: "a1111", seed: 1, adapters: [{ adapter: "tagged", weight: 0.5 }] };
    const again = await generateMiss(key, named);
    const requests = await Promise.all([tagged, again].map(async ({ generation }) => (await readGeneration(key, generation)).request));
    expect(requests[0]).toEqual(requests[1]);
    expect(requests[0]!.adapters[0]).toMatchObject({ name: "tagged", weight: 0.5, text_encoder_weight: 0.5 });
  });

  it("names the prompt where a tag names no adapter", async () => {
    const json = { prompt: "x", prompt_syntax: "a1111", per_image: [{ prompt: "a <lora:unheard-of:1>" }] };
    const answer = await call("/v1/generations", { method: "POST", key, json });
    expect([answer.status, await answer.json()]).toMatchObject([400, { errors: [{ field: "per_image.0.prompt", got: '"unheard-of"' }] }]);
  });
});
