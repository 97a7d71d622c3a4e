CREATE TABLE `dataset_files` (
	`dataset_id` text NOT NULL,
	`sha256` text NOT NULL,
	`tenant_id` text NOT NULL,
	`bytes` integer NOT NULL,
	`media_type` text NOT NULL,
	`width` integer NOT NULL,
	`height` integer NOT NULL,
	PRIMARY KEY(`dataset_id`, `sha256`),
	FOREIGN KEY (`dataset_id`) REFERENCES `datasets`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE INDEX `dataset_files_content` ON `dataset_files` (`tenant_id`,`sha256`);--> statement-breakpoint
CREATE TABLE `dataset_items` (
	`dataset_id` text NOT NULL,
	`sha256` text NOT NULL,
	`tenant_id` text NOT NULL,
	`caption` text NOT NULL,
	`split` text NOT NULL,
	`mask` text,
	`condition` text,
	`concept` integer NOT NULL,
	PRIMARY KEY(`dataset_id`, `sha256`),
	FOREIGN KEY (`dataset_id`) REFERENCES `datasets`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `datasets` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`name` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `datasets_tenant` ON `datasets` (`tenant_id`,`id`);--> statement-breakpoint
CREATE TABLE `trainings` (
	`id` text PRIMARY KEY NOT NULL,
	`tenant_id` text NOT NULL,
	`name` text NOT NULL,
	`dataset_id` text NOT NULL,
	`report` text,
	`files` text,
	`adapters` text,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `trainings_tenant` ON `trainings` (`tenant_id`,`id`);--> statement-breakpoint
ALTER TABLE `executions` ADD `kind` text DEFAULT 'picture' NOT NULL;