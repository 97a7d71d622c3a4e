import { cors } from "hono/cors";
import { AtelierError } from "../shared/errors.ts";
import { authenticate, authenticateAdmin } from "./auth.ts";
import { limitBody } from "./body.ts";
import { type AppContext, answerError, createRouter } from "./http.ts";
import { newRequestId } from "./ids.ts";
import { log } from "./log.ts";
import { describeApi } from "./openapi-document.ts";
import { referencePage } from "./reference-page.ts";
import { adapterFileRoutes, adapterRoutes } from "./routes/adapters.ts";
import { adminRoutes } from "./routes/admin.ts";
import { datasetRoutes } from "./routes/datasets.ts";
import { eventsRoutes } from "./routes/events.ts";
import { generationRoutes } from "./routes/generations.ts";
import { jobRoutes } from "./routes/jobs.ts";
import { modelRoutes } from "./routes/models.ts";
import { pageRoutes } from "./routes/pages.ts";
import { pictureRoutes } from "./routes/pictures.ts";
import { runnerRoutes } from "./routes/runner.ts";
import { trainingFileRoutes, trainingRoutes } from "./routes/trainings.ts";
import { uploadFileRoutes, uploadRoutes } from "./routes/uploads.ts";
import { securityHeaders } from "./security-headers.ts";

/** The Worker's HTTP side. The order of the lines counts: what stands behind `authenticate` is reached only with a key. */
export const app = createRouter();

const requestIdPattern = /^req_[0-9A-HJKMNP-TV-Z]{26}$/;

app.use(async (context, next) => {
  const given = context.req.header("x-request-id") ?? "";
  context.set("requestId", requestIdPattern.test(given) ? given : newRequestId());
  const start = Date.now();
  await next();
  if (!context.res.webSocket) context.header("x-request-id", context.get("requestId"));
  const { method, path } = context.req;
  // The path without its query: a signed URL is a secret.
  log("info", "request", { request_id: context.get("requestId"), method, path, status: context.res.status, ms: Date.now() - start });
});
app.onError(answerError);
app.notFound(context => answerError(unknownRoute(context), context));

app.use("/v1/*", securityHeaders);
app.use(
  "/v1/*",
  cors({
    // Keys travel in a header, never in a cookie, so any origin may ask.
    origin: "*",
    allowMethods: ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
    allowHeaders: ["Authorization", "Content-Type", "Idempotency-Key", "Prefer", "X-Request-Id", "Range", "If-None-Match", "Last-Event-ID"],
    exposeHeaders: ["Location", "Retry-After", "X-Request-Id", "Idempotent-Replayed", "Preference-Applied", "ETag", "Content-Range"],
    maxAge: 86400,
  }),
);
app.route("/", pictureRoutes);
app.route("/", uploadFileRoutes);
app.route("/", adapterFileRoutes);
app.route("/", trainingFileRoutes);
app.use("/v1/*", authenticate, limitBody);
app.route("/", generationRoutes);
app.route("/", jobRoutes);
app.route("/", eventsRoutes);
app.route("/", modelRoutes);
app.route("/", uploadRoutes);
app.route("/", adapterRoutes);
app.route("/", datasetRoutes);
app.route("/", trainingRoutes);

app.use("/admin/v1/*", securityHeaders, authenticateAdmin, limitBody);
app.route("/", adminRoutes);

app.route("/", runnerRoutes);
app.openAPIRegistry.registerComponent("securitySchemes", "apiKey", { type: "http", scheme: "bearer", description: "An API key, atl_…" });
app.openAPIRegistry.registerComponent("securitySchemes", "adminToken", {
  type: "http",
  scheme: "bearer",
  description: "The operator's token",
});
app.get("/openapi.json", context => context.json(describeApi(app, new URL(context.req.url).origin)));
app.get("/docs", context => {
  const nonce = crypto.randomUUID();
  context.header("content-security-policy", `default-src 'none'; style-src 'nonce-${nonce}'; base-uri 'none'; frame-ancestors 'none'`);
  context.header("x-content-type-options", "nosniff");
  return context.html(referencePage(describeApi(app, new URL(context.req.url).origin), nonce));
});
app.route("/", pageRoutes);

/** 405 with Allow where the path exists under other methods, else 404. */
function unknownRoute(context: AppContext): AtelierError {
  const methods = app.routes
    .filter(({ path }) => !path.includes("*") && pathPattern(path).test(context.req.path))
    .map(({ method }) => method);
  if (methods.length === 0) return new AtelierError("not_found");
  const allowed = [...new Set(methods)].join(", ");
  context.header("allow", allowed);
  return new AtelierError("method_not_allowed", `This resource takes ${allowed}.`);
}

function pathPattern(path: string): RegExp {
  return new RegExp(`^${path.replaceAll(/:[a-z]+(\{.*\})?/g, (_, own) => (own ? ".+" : "[^/]+"))}$`);
}
