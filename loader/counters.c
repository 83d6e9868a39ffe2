// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel counts, as JSON: all of /sys/kernel/mm/ksm_ext, so that a
 * counter of a later kernel is there, too.
 */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ksmx.h"

double get_number(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItem(object, name);

	return item ? item->valuedouble : 0;
}

const char *get_string(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItem(object, name);

	return item && item->valuestring ? item->valuestring : "";
}

static void add_string(cJSON *object, const char *name)
{
	char buf[RECORD_LEN];

	if (!sysfs_read(name, buf, sizeof(buf)))
		*buf = '\0';
	cJSON_AddStringToObject(object, name, buf);
}

/*
 * Adds the files of a folder of /sys that hold one number each, in the order
 * of their names.  Most are for root only; what one can not read is left out.
 */
static void add_numbers(cJSON *object, const char *folder)
{
	char path[512], name[512], buf[64], *end;
	struct dirent **entries;
	int i, n;

	snprintf(path, sizeof(path), SYSFS "/%s", folder);
	n = scandir(path, &entries, NULL, alphasort);
	for (i = 0; i < n; i++) {
		const char *base = entries[i]->d_name;
		double value;

		snprintf(name, sizeof(name), "%s/%s", folder, base);
		if (entries[i]->d_type == DT_REG &&
		    sysfs_read(name, buf, sizeof(buf))) {
			value = strtod(buf, &end);
			if (end != buf && !*end)
				cJSON_AddNumberToObject(object, base, value);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

static cJSON *read_counters(const char *folder)
{
	cJSON *object = cJSON_CreateObject();

	add_numbers(object, folder);
	return object;
}

/* The folders of counters: merge, break, ... */
static void add_folders(cJSON *object)
{
	struct dirent **entries;
	int i, n;

	n = scandir(SYSFS, &entries, NULL, alphasort);
	for (i = 0; i < n; i++) {
		const char *name = entries[i]->d_name;

		if (entries[i]->d_type == DT_DIR && *name != '.')
			cJSON_AddItemToObject(object, name,
					      read_counters(name));
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

/* What the policy says about itself in this map, if it does and we may look. */
static void add_entry(cJSON *object, const char *map)
{
	cJSON *entry = read_entry(map);

	if (entry)
		cJSON_AddItemToObject(object, map, entry);
}

/* All that there is to know; counters are missing for who may not see them. */
cJSON *read_status(void)
{
	cJSON *status = cJSON_CreateObject();

	add_string(status, "state");
	add_string(status, "policy");
	add_string(status, "exit");
	add_numbers(status, ".");
	if (cJSON_HasObjectItem(status, "pages_sharing")) {
		cJSON_AddNumberToObject(status, "saved_bytes",
					get_number(status, "pages_sharing") *
					sysconf(_SC_PAGESIZE));
		cJSON_AddBoolToObject(status, "dry_run", is_dry_run());
	}
	add_folders(status);
	add_entry(status, "progress");
	add_entry(status, "report");
	return status;
}

static bool is_number(const char *text)
{
	return *text && text[strspn(text, "0123456789")] == '\0';
}

/* Time that the kernel's scan thread has used; it comes with the first policy. */
bool ksm_extd_cpu_seconds(double *seconds)
{
	static const char name[] = "(ksm_extd)";
	unsigned long utime, stime;
	struct dirent *entry;
	bool found = false;
	char path[300];
	DIR *proc;
	FILE *f;

	proc = opendir("/proc");
	while (proc && !found && (entry = readdir(proc))) {
		char text[512], *after;
		unsigned int flags;
		size_t n;

		if (!is_number(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		n = fread(text, 1, sizeof(text) - 1, f);
		fclose(f);
		text[n] = '\0';
		after = strstr(text, name);
		/* PF_KTHREAD: anybody may call himself so. */
		found = after && sscanf(after + sizeof(name),
					"%*c %*d %*d %*d %*d %*d %u %*u %*u %*u %*u %lu %lu",
					&flags, &utime, &stime) == 3 &&
			flags & 0x00200000;
	}
	if (proc)
		closedir(proc);
	if (found)
		*seconds = (utime + stime) / (double)sysconf(_SC_CLK_TCK);
	return found;
}
