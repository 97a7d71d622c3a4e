CREATE TABLE `api_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`name` text NOT NULL,
	`hash` text NOT NULL,
	`pepper_id` text NOT NULL,
	`scopes` text NOT NULL,
	`created_at` integer NOT NULL,
	`revoked_at` integer,
	FOREIGN KEY (`tenant_id`) REFERENCES `tenants`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `api_keys_hash_unique` ON `api_keys` (`hash`);--> statement-breakpoint
CREATE INDEX `api_keys_tenant` ON `api_keys` (`tenant_id`);--> statement-breakpoint
CREATE TABLE `cache_entries` (
	`tenant_id` text NOT NULL,
	`request_hash` text NOT NULL,
	`picture_id` text NOT NULL,
	PRIMARY KEY(`tenant_id`, `request_hash`)
);
--> statement-breakpoint
CREATE INDEX `cache_entries_picture` ON `cache_entries` (`picture_id`);--> statement-breakpoint
CREATE TABLE `dead_letters` (
	`id` text PRIMARY KEY NOT NULL,
	`queue` text NOT NULL,
	`body` text NOT NULL,
	`attempts` integer NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `executions` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`pool` text NOT NULL,
	`request_hash` text NOT NULL,
	`params` text NOT NULL,
	`params_sha256` text NOT NULL,
	`model_hash` text NOT NULL,
	`exclusive` integer NOT NULL,
	`request_id` text NOT NULL,
	`state` text NOT NULL,
	`epoch` integer,
	`error` text,
	`created_at` integer NOT NULL,
	`finished_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `executions_joinable` ON `executions` (`tenant_id`,`request_hash`) WHERE state = 'active' and exclusive = 0;--> statement-breakpoint
CREATE INDEX `executions_live` ON `executions` (`pool`,`created_at`) WHERE state in ('active', 'abandoned');--> statement-breakpoint
CREATE TABLE `idempotency_keys` (
	`tenant_id` text NOT NULL,
	`key` text NOT NULL,
	`path` text NOT NULL,
	`body_sha256` text NOT NULL,
	`ulid` text NOT NULL,
	`status` integer,
	`response` text,
	`created_at` integer NOT NULL,
	PRIMARY KEY(`tenant_id`, `key`)
);
--> statement-breakpoint
CREATE INDEX `idempotency_keys_age` ON `idempotency_keys` (`created_at`);--> statement-breakpoint
CREATE TABLE `job_pictures` (
	`job_id` text NOT NULL,
	`idx` integer NOT NULL,
	`tenant_id` text NOT NULL,
	`seed` integer NOT NULL,
	`request_hash` text NOT NULL,
	`execution_id` text,
	`picture_id` text,
	`state` text NOT NULL,
	`cached` integer NOT NULL,
	PRIMARY KEY(`job_id`, `idx`),
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE INDEX `job_pictures_execution` ON `job_pictures` (`execution_id`);--> statement-breakpoint
CREATE INDEX `job_pictures_picture` ON `job_pictures` (`picture_id`);--> statement-breakpoint
CREATE TABLE `jobs` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`kind` text NOT NULL,
	`pool` text NOT NULL,
	`model_hash` text NOT NULL,
	`request` text NOT NULL,
	`request_id` text NOT NULL,
	`status` text NOT NULL,
	`error` text,
	`created_at` integer NOT NULL,
	`deadline_at` integer NOT NULL,
	`finished_at` integer
);
--> statement-breakpoint
CREATE INDEX `jobs_tenant` ON `jobs` (`tenant_id`,`id`);--> statement-breakpoint
CREATE INDEX `jobs_live` ON `jobs` (`pool`,`deadline_at`) WHERE status = 'active';--> statement-breakpoint
CREATE TABLE `models` (
	`name` text PRIMARY KEY NOT NULL,
	`hash` text NOT NULL,
	`pool` text NOT NULL,
	`manifest` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `pictures` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`execution_id` text NOT NULL,
	`request_hash` text NOT NULL,
	`model_hash` text NOT NULL,
	`r2_key` text NOT NULL,
	`sha256` text NOT NULL,
	`bytes` integer NOT NULL,
	`width` integer NOT NULL,
	`height` integer NOT NULL,
	`media_type` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `pictures_execution_id_unique` ON `pictures` (`execution_id`);--> statement-breakpoint
CREATE INDEX `pictures_tenant` ON `pictures` (`tenant_id`,`id`);--> statement-breakpoint
CREATE INDEX `pictures_model` ON `pictures` (`model_hash`);--> statement-breakpoint
CREATE TABLE `runner_tokens` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`pool` text NOT NULL,
	`hash` text NOT NULL,
	`pepper_id` text NOT NULL,
	`created_at` integer NOT NULL,
	`revoked_at` integer
);
--> statement-breakpoint
CREATE TABLE `security_events` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`detail` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `security_events_age` ON `security_events` (`created_at`);--> statement-breakpoint
CREATE TABLE `tenants` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `tenants_name_unique` ON `tenants` (`name`);