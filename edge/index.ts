import { app } from "./app.ts";
import { consumeQueue } from "./dispatcher/queue.ts";
import { wakeDispatchers } from "./dispatcher/wake.ts";
import type { Env } from "./env.ts";

export { Dispatcher } from "./dispatcher/dispatcher.ts";
export { JobEvents } from "./events/job-events.ts";

export default {
  fetch: app.fetch,
  queue: consumeQueue,
  scheduled: wakeDispatchers,
} satisfies ExportedHandler<Env>;
