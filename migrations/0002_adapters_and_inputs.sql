CREATE TABLE `adapter_files` (
	`adapter_id` text NOT NULL,
	`path` text NOT NULL,
	`tenant_id` text NOT NULL,
	`sha256` text NOT NULL,
	`bytes` integer NOT NULL,
	PRIMARY KEY(`adapter_id`, `path`),
	FOREIGN KEY (`adapter_id`) REFERENCES `adapters`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE INDEX `adapter_files_content` ON `adapter_files` (`tenant_id`,`sha256`);--> statement-breakpoint
CREATE TABLE `adapters` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`name` text NOT NULL,
	`version` integer NOT NULL,
	`hash` text NOT NULL,
	`visibility` text NOT NULL,
	`status` text NOT NULL,
	`stated_kind` text,
	`token` text,
	`manifest` text,
	`reasons` text,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `adapters_version` ON `adapters` (`tenant_id`,`name`,`version`);--> statement-breakpoint
CREATE UNIQUE INDEX `adapters_content` ON `adapters` (`tenant_id`,`name`,`hash`);--> statement-breakpoint
CREATE INDEX `adapters_hash` ON `adapters` (`hash`);--> statement-breakpoint
CREATE INDEX `adapters_public` ON `adapters` (`name`) WHERE visibility = 'public';--> statement-breakpoint
CREATE INDEX `adapters_uploading` ON `adapters` (`created_at`) WHERE status <> 'ready';--> statement-breakpoint
CREATE TABLE `execution_parts` (
	`hash` text NOT NULL,
	`execution_id` text NOT NULL,
	PRIMARY KEY(`hash`, `execution_id`)
);
--> statement-breakpoint
CREATE INDEX `execution_parts_execution` ON `execution_parts` (`execution_id`);--> statement-breakpoint
CREATE TABLE `uploads` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`sha256` text NOT NULL,
	`bytes` integer NOT NULL,
	`media_type` text NOT NULL,
	`ready` integer NOT NULL,
	`width` integer,
	`height` integer,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `uploads_content` ON `uploads` (`tenant_id`,`sha256`);--> statement-breakpoint
CREATE INDEX `uploads_age` ON `uploads` (`expires_at`);--> statement-breakpoint
-- SQLite adds no NOT NULL column without a default, and a default would let executions of no batch key share one.
CREATE TABLE `__new_executions` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`pool` text NOT NULL,
	`request_hash` text NOT NULL,
	`params` text NOT NULL,
	`params_sha256` text NOT NULL,
	`model_hash` text NOT NULL,
	`batch_key` text NOT NULL,
	`inputs` text NOT NULL,
	`exclusive` integer NOT NULL,
	`request_id` text NOT NULL,
	`state` text NOT NULL,
	`epoch` integer,
	`error` text,
	`created_at` integer NOT NULL,
	`finished_at` integer
);
--> statement-breakpoint
INSERT INTO `__new_executions` SELECT `id`, `tenant_id`, `pool`, `request_hash`, `params`, `params_sha256`, `model_hash`, `request_hash`, '{"files":[],"adapters":[]}', `exclusive`, `request_id`, `state`, `epoch`, `error`, `created_at`, `finished_at` FROM `executions`;--> statement-breakpoint
DROP TABLE `executions`;--> statement-breakpoint
ALTER TABLE `__new_executions` RENAME TO `executions`;--> statement-breakpoint
CREATE UNIQUE INDEX `executions_joinable` ON `executions` (`tenant_id`,`request_hash`) WHERE state = 'active' and exclusive = 0;--> statement-breakpoint
CREATE INDEX `executions_live` ON `executions` (`pool`,`created_at`) WHERE state in ('active', 'abandoned');
