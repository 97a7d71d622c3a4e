/** Whether a net learns all objects at once: the LoRA that it predicts for each suits that object's held-out pictures better than any other's. */
import { type ConceptSet, conceptNames, readConcept, type StudyPicture } from "./concepts.ts";
import { matrixPlan } from "./plans.ts";
import type { MatrixResult } from "./results.ts";
import type { Study } from "./study.ts";
import { costOf, evaluated, exportedFiles, type TrainingAsked, trained } from "./training.ts";
import { ownBest } from "./verdict.ts";

const name = "hyper-lora";

export async function studyHyperLora(study: Study): Promise<void> {
  const objects = conceptNames.map(readConcept).filter(({ isObject }) => isObject);
  const own: TrainingAsked = {
    pictures: async () => picturesOf(objects).filter(({ split }) => split === "train"),
    concepts: objects.map(({ token }) => ({ token, class_prompt: "toy" })),
    body: matrixPlan,
  };
  const made = await trained(study.products.trainer, study.kept, name, own);
  const gains = await gainsOf(study, name, own, objects, 2);
  const result: MatrixResult = {
    ...{ kind: "matrix", cost: costOf(made), gains, control: null },
    ...{ concepts: objects.map(concept => concept.name), tokens: objects.map(({ token }) => token) },
  };
  study.say(`${name}: own weights are best for ${ownBest(gains)} of ${objects.length} objects (${made.wall_seconds.toFixed(0)} s)`);
  study.finished(name, result);
  const still = { ...own, body: { ...matrixPlan, steps: 20, optimizer: { ...matrixPlan.optimizer, learning_rate: 0 } } };
  const control = { gains: await gainsOf(study, `${name}/control-rate-0`, still, objects, 1) };
  study.say(`learning rate 0: own weights are best for ${ownBest(control.gains)} of ${objects.length}`);
  study.finished(name, { ...result, control });
}

/** All concepts' pictures under names of their own. */
function picturesOf(concepts: readonly ConceptSet[]): StudyPicture[] {
  return concepts.flatMap(({ name, pictures }, concept) => pictures.map(each => ({ ...each, file: `${name}-${each.file}`, concept })));
}

/** A concept's first held-out pictures, and one that a dataset needs to train on. */
function shown({ pictures }: ConceptSet, count: number): StudyPicture[] {
  const of = (wanted: StudyPicture["split"]) => pictures.filter(({ split }) => split === wanted);
  return [...of("train").slice(0, 1), ...of("test").slice(0, count)];
}

/** Of each concept's weights on each concept's held-out pictures. @param count so many pictures of each */
async function gainsOf(
  { products, kept, picture }: Study,
  part: string,
  asked: TrainingAsked,
  objects: readonly ConceptSet[],
  count: number,
) {
  const made = await trained(products.trainer, kept, part, asked);
  const gains: number[][] = [];
  for (const { token, name: concept, pictures } of objects) {
    const scores = `${part}/${concept}-scores`;
    const { picture_losses: losses } = await evaluated(products.server, kept, scores, {
      files: exportedFiles(kept, part, made, `${token}/`).slice(0, 1),
      pictures: picturesOf(objects.map(each => ({ ...each, pictures: shown(each, count) }))),
      concepts: asked.concepts,
      scoring: { pictures: count * objects.length, prior_pictures: 0, steps: 2 },
      prompts: pictures
        .filter(({ split }) => split === "test")
        .slice(0, 2)
        .map(({ caption }) => caption),
    });
    gains.push(
      objects.map((_, column) => {
        const own = losses.filter(({ concept: of }) => of === column);
        const sum = (of: "base" | "adapted") => own.reduce((total, picture) => total + picture[of], 0);
        return 1 - sum("adapted") / sum("base");
      }),
    );
    const grid = kept.read(`${scores}.png`);
    if (grid && part === name) await picture(`${name}-${concept}`, grid);
  }
  return gains;
}
