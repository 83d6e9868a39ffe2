// SPDX-License-Identifier: GPL-2.0
/*
 * dump: how the last policy ended, and all that is shared.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "look.h"

/* The file told of last: its pages often come in a row. */
static __u64 known;
static const char *known_path;

static int print_alias(const struct look_alias *alias, void *unused)
{
	if (alias->file != known) {
		known = alias->file;
		known_path = look_path(known);
	}
	if (options.json) {
		cJSON *object = cJSON_CreateObject();
		char text[32];

		/* Too large for a number of JSON */
		snprintf(text, sizeof(text), "%#llx", alias->root);
		cJSON_AddStringToObject(object, "root", text);
		snprintf(text, sizeof(text), "%#llx", alias->domain);
		cJSON_AddStringToObject(object, "domain", text);
		cJSON_AddNumberToObject(object, "nr_sharing",
					alias->nr_sharing);
		cJSON_AddNumberToObject(object, "file", alias->file);
		cJSON_AddNumberToObject(object, "page", alias->index);
		cJSON_AddNumberToObject(object, "nr", alias->nr);
		cJSON_AddStringToObject(object, "path", known_path);
		return print_json_line(object);
	}
	printf("%-18llx %7u %10llu %3u %s\n", alias->root, alias->nr_sharing,
	       alias->index, alias->nr, known_path);
	return 0;
}

static void print_record(const char *name, const char *text)
{
	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, name, text);
		print_json_line(object);
	} else if (*text) {
		printf("%s: %s\n", name, text);
	}
}

int cmd_dump(int argc, char **argv)
{
	char text[DUMP_LEN] = "";
	int ret;

	ret = look_open();
	if (ret)
		return ret;
	sysfs_read("exit", text, sizeof(text));
	print_record("exit", text);
	/* What the policy itself had to say, in as many lines as it wanted */
	if (sysfs_read("exit_dump", text, sizeof(text)) && *text)
		print_record("dump", text);

	if (!options.json)
		printf("%-18s %7s %10s %3s %s\n", "root", "sharing", "page",
		       "nr", "file");
	ret = look_for_aliases(NULL, 0, print_alias, NULL);
	if (ret < 0)
		return fail(KSMX_FAILED, "cannot list what is shared: %s",
			    strerror(-ret));
	return ret;
}
