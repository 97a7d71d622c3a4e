import { createRouter } from "../http.ts";

/** The playground's files, and whether the Worker answers at all. */
export const pageRoutes = createRouter();

pageRoutes.get("/healthz", context => context.json({ status: "ok" }));

pageRoutes.get("*", async context => {
  const file = await context.env.UI.fetch(context.req.raw);
  return file.status === 404 ? context.notFound() : file;
});
