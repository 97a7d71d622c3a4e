import { fileURLToPath } from "node:url";
import { freePort } from "../scripts/local/processes.ts";
import { startProduct } from "../scripts/local/product.ts";
import { LocalState, stateFolder } from "../scripts/local/state.ts";
import { StudyClient } from "./client.ts";

/** One product that trains and another, with processes and storage of its own, that only knows the files that came out. */
export interface Products {
  trainer: StudyClient;
  server: StudyClient;
  stop(): Promise<void>;
}

const model = fileURLToPath(new URL("../models/pocket", import.meta.url));

export async function startProducts(): Promise<Products> {
  const trainer = await startOne("trainer");
  const server = await startOne("server").catch(async error => {
    await trainer.stop();
    throw error;
  });
  return {
    trainer: trainer.client,
    server: server.client,
    stop: async () => {
      await trainer.stop();
      await server.stop();
    },
  };
}

async function startOne(role: string): Promise<{ client: StudyClient; stop(): Promise<void> }> {
  const state = new LocalState(`${stateFolder()}/studies/${role}`);
  const unlock = state.lock();
  const product = await startProduct(state, { port: await freePort(), models: [model] }).catch(error => {
    unlock();
    throw error;
  });
  const stop = async () => {
    await product.stop();
    unlock();
  };
  return { client: new StudyClient(product), stop };
}
