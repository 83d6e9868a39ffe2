// SPDX-License-Identifier: GPL-2.0
/*
 * status, list: what only looks.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"
#include "ksm_ext_progress.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Files that hold one number each, as they are named in /sys and in JSON. */
static const char * const numbers[] = {
	"run", "max_page_sharing", "pages_shared", "pages_sharing", "aliases",
	"general_profit", "files_known", "slices",
};

static const struct {
	const char *name;
	size_t offset;
} progress_members[] = {
#define MEMBER(name) { #name, offsetof(struct ksm_ext_progress, name) }
	MEMBER(rounds), MEMBER(quiet), MEMBER(files), MEMBER(pending),
	MEMBER(merged), MEMBER(total_looks), MEMBER(total_hashed),
	MEMBER(total_merged),
#undef MEMBER
};

/* Most files are for root only; what one can not read is left out. */
static void add_number(cJSON *object, const char *name, const char *file)
{
	char buf[64];

	if (sysfs_read(file, buf, sizeof(buf)))
		cJSON_AddNumberToObject(object, name, strtod(buf, NULL));
}

static void add_string(cJSON *object, const char *name)
{
	char buf[256];

	if (!sysfs_read(name, buf, sizeof(buf)))
		*buf = '\0';
	cJSON_AddStringToObject(object, name, buf);
}

/* All counters of a folder of /sys, in the order of their names. */
static cJSON *read_counters(const char *folder)
{
	cJSON *object = cJSON_CreateObject();
	char path[256], name[512];
	struct dirent **entries;
	int i, n;

	snprintf(path, sizeof(path), SYSFS "/%s", folder);
	n = scandir(path, &entries, NULL, alphasort);
	for (i = 0; i < n; i++) {
		const char *base = entries[i]->d_name;

		if (*base != '.') {
			snprintf(name, sizeof(name), "%s/%s", folder, base);
			add_number(object, base, name);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	return object;
}

/* What the policy says about itself, if it does and we may look. */
static cJSON *read_progress(void)
{
	struct ksm_ext_progress progress;
	struct bpf_map_info info = {};
	__u32 zero = 0, len = sizeof(info);
	cJSON *object = NULL;
	size_t i;
	int fd;

	fd = bpf_obj_get(PIN_MAPS "/progress");
	if (fd < 0)
		return NULL;
	if (!bpf_map_get_info_by_fd(fd, &info, &len) &&
	    info.value_size == sizeof(progress) &&
	    !bpf_map_lookup_elem(fd, &zero, &progress)) {
		object = cJSON_CreateObject();
		for (i = 0; i < ARRAY_SIZE(progress_members); i++)
			cJSON_AddNumberToObject(object,
						progress_members[i].name,
						*(__u64 *)((char *)&progress +
						progress_members[i].offset));
	}
	close(fd);
	return object;
}

static double get(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItem(object, name);

	return item ? item->valuedouble : 0;
}

static const char *get_string(const cJSON *object, const char *name)
{
	return cJSON_GetObjectItem(object, name)->valuestring;
}

/* The counters that are not zero, several to a line. */
static void print_counters(const char *title, const cJSON *counters,
			   const char *prefix)
{
	const cJSON *item;
	int column = 0;

	cJSON_ArrayForEach(item, counters) {
		const char *name = item->string;
		char text[128];
		int len;

		if (strncmp(name, prefix, strlen(prefix)) ||
		    !item->valuedouble)
			continue;
		len = snprintf(text, sizeof(text), "%.0f %s",
			       item->valuedouble, name + strlen(prefix));
		if (column && column + len + 2 > 78) {
			printf("\n");
			column = 0;
		}
		if (!column)
			column = printf("%-10s", title) + len;
		else
			column += printf(", ") + len;
		title = "";
		fputs(text, stdout);
	}
	if (column)
		printf("\n");
}

static void print_numbers(const cJSON *status)
{
	const cJSON *progress = cJSON_GetObjectItem(status, "progress");
	const cJSON *merge = cJSON_GetObjectItem(status, "merge");
	double mib = 1 << 20;

	printf("%-10s%.1f MiB, %.1f MiB after metadata\n", "saved",
	       get(status, "saved_bytes") / mib,
	       get(status, "general_profit") / mib);
	printf("%-10s%.0f roots with %.0f aliases\n", "shared",
	       get(status, "pages_shared"), get(status, "aliases"));
	printf("%-10s%.0f known\n", "files", get(status, "files_known"));
	if (get(progress, "quiet"))
		printf("%-10s%.0f, settled: the last %.0f merged nothing new\n",
		       "rounds", get(progress, "rounds"),
		       get(progress, "quiet"));
	else if (progress)
		printf("%-10s%.0f, not settled yet\n", "rounds",
		       get(progress, "rounds"));
	printf("%-10s%.0f of %.0f tried\n", "merged", get(merge, "applied"),
	       get(merge, "tried"));
	print_counters("refused", merge, "refused_");
	print_counters("broken", cJSON_GetObjectItem(status, "break"), "");
}

static void print_status(const cJSON *status)
{
	const char *state = get_string(status, "state");
	const char *policy = get_string(status, "policy");
	const char *end = get_string(status, "exit");

	if (!*policy)
		printf("%-10snone\n", "policy");
	else
		printf("%-10s%s, %s\n", "policy", policy, state);
	if (!strcmp(state, "idle"))
		printf("%-10srun is %.0f; to go on: echo 1 > " SYSFS "/run\n",
		       "", get(status, "run"));
	if (*end)
		printf("%-10s%s\n", strcmp(state, "ejected") ? "before" :
		       "because", end);
	if (cJSON_HasObjectItem(status, "pages_sharing"))
		print_numbers(status);
	else
		printf("%-10sshown to root only\n", "counters");
}

int cmd_status(const char *unused)
{
	cJSON *status, *progress;
	bool ejected;
	size_t i;
	int ret;

	ret = check_support();
	if (ret)
		return ret;

	status = cJSON_CreateObject();
	add_string(status, "state");
	add_string(status, "policy");
	add_string(status, "exit");
	ejected = !strcmp(get_string(status, "state"), "ejected");
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		add_number(status, numbers[i], numbers[i]);
	if (cJSON_HasObjectItem(status, "pages_sharing"))
		cJSON_AddNumberToObject(status, "saved_bytes",
					get(status, "pages_sharing") *
					sysconf(_SC_PAGESIZE));
	cJSON_AddItemToObject(status, "merge", read_counters("merge"));
	cJSON_AddItemToObject(status, "break", read_counters("break"));
	progress = read_progress();
	if (progress)
		cJSON_AddItemToObject(status, "progress", progress);

	if (options.json) {
		ret = print_json(status);
	} else {
		print_status(status);
		cJSON_Delete(status);
	}
	return ret ?: ejected ? KSMX_EJECTED : KSMX_OK;
}

static int is_policy(const struct dirent *entry)
{
	const char *suffix = strstr(entry->d_name, ".bpf.o");

	return suffix && !strcmp(suffix, ".bpf.o");
}

static bool listed(const cJSON *list, const char *name)
{
	const cJSON *item;

	cJSON_ArrayForEach(item, list) {
		if (!strcmp(cJSON_GetObjectItem(item, "name")->valuestring,
			    name))
			return true;
	}
	return false;
}

static void list_dir(cJSON *list, const char *dir, const char *loaded)
{
	struct dirent **entries;
	int i, n;

	n = scandir(dir, &entries, is_policy, alphasort);
	for (i = 0; i < n; i++) {
		char *name = entries[i]->d_name;
		struct policy policy;
		cJSON *item;
		int len;

		len = snprintf(policy.path, sizeof(policy.path), "%s/%s", dir,
			       name);
		*strstr(name, ".bpf.o") = '\0';
		if (len < (int)sizeof(policy.path) && !listed(list, name) &&
		    !policy_open_path(&policy)) {
			item = cJSON_CreateObject();
			cJSON_AddStringToObject(item, "name", name);
			cJSON_AddStringToObject(item, "about",
						policy_about(&policy));
			cJSON_AddStringToObject(item, "file",
						policy.path);
			cJSON_AddBoolToObject(item, "loaded",
					      !strcmp(policy_name(&policy),
						      loaded));
			cJSON_AddItemToArray(list, item);
			bpf_object__close(policy.obj);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

int cmd_list(const char *unused)
{
	char dirs[NR_POLICY_DIRS][PATH_MAX], loaded[64] = "";
	cJSON *list = cJSON_CreateArray();
	const cJSON *item;
	int i;

	/* On a kernel without ksm_ext, none is loaded. */
	sysfs_read("policy", loaded, sizeof(loaded));
	policy_dirs(dirs);
	for (i = 0; i < NR_POLICY_DIRS; i++) {
		if (*dirs[i])
			list_dir(list, dirs[i], loaded);
	}

	if (options.json)
		return print_json(list);
	if (!cJSON_GetArraySize(list)) {
		cJSON_Delete(list);
		return fail(KSMX_BAD_OBJECT,
			    "no policies found: set KSMX_POLICY_DIR to where NAME.bpf.o are");
	}
	cJSON_ArrayForEach(item, list) {
		printf("%c %-12s %s\n",
		       cJSON_IsTrue(cJSON_GetObjectItem(item, "loaded")) ?
		       '*' : ' ',
		       cJSON_GetObjectItem(item, "name")->valuestring,
		       cJSON_GetObjectItem(item, "about")->valuestring);
	}
	cJSON_Delete(list);
	return KSMX_OK;
}
