/** What a model thread says first. */
import type { Worker } from "node:worker_threads";
import { ModelLoadFailed } from "./compute-errors.ts";
import { fromWorkerSchema } from "./model-messages.ts";
import type { RegisteredModel } from "./model-registry.ts";

/** How the start of a thread ends. @throws ModelLoadFailed */
export function firstAnswer(worker: Worker): Promise<RegisteredModel[]> {
  return new Promise((resolve, reject) => {
    const failed = (why: string, diskFull = false) => reject(new ModelLoadFailed(why, diskFull));
    worker.once("error", error => failed(error instanceof Error ? error.message : "the model thread failed"));
    worker.once("exit", code => failed(`the model thread ended with exit code ${code} while it loaded the models`));
    worker.on("message", function look(value: unknown) {
      const message = fromWorkerSchema.safeParse(value).data;
      if (message?.type === "note" || message?.type === "resident") return;
      worker.off("message", look);
      if (message?.type === "loaded") resolve(message.models);
      else if (message?.type === "load_failed") failed(message.message, message.disk_full);
      else failed("the model thread sent an unexpected message while it loaded the models");
    });
  });
}
