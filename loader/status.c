// SPDX-License-Identifier: GPL-2.0
/*
 * status, list: what only looks.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

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

/* What the policy has found out, by its own names */
static void print_report(const cJSON *report)
{
	const char *title = "report";
	const cJSON *item;

	cJSON_ArrayForEach(item, report) {
		printf("%-10s%-24s %.0f\n", title, item->string,
		       item->valuedouble);
		title = "";
	}
}

static void print_numbers(const cJSON *status)
{
	const cJSON *progress = cJSON_GetObjectItem(status, "progress");
	const cJSON *merge = cJSON_GetObjectItem(status, "merge");
	bool dry_run = cJSON_IsTrue(cJSON_GetObjectItem(status, "dry_run"));

	if (dry_run)
		printf("%-10s%.0f pairs of pages would have been merged\n",
		       "dry run", get_number(merge, "would_merge"));
	/* What was merged before it began is there all the same. */
	if (!dry_run || get_number(status, "aliases")) {
		printf("%-10s%.1f MiB, %.1f MiB after metadata\n", "saved",
		       get_number(status, "saved_bytes") / MIB,
		       get_number(status, "general_profit") / MIB);
		printf("%-10s%.0f roots with %.0f aliases\n", "shared",
		       get_number(status, "pages_shared"),
		       get_number(status, "aliases"));
	}
	print_report(cJSON_GetObjectItem(status, "report"));
	if (get_number(status, "strict"))
		printf("%-10son; %.0f more pages look shared\n", "strict",
		       get_number(status, "pages_fake"));
	printf("%-10s%.0f known\n", "files", get_number(status, "files_known"));
	if (get_number(progress, "quiet"))
		printf("%-10s%.0f, settled: the last %.0f merged nothing new\n",
		       "rounds", get_number(progress, "rounds"),
		       get_number(progress, "quiet"));
	else if (progress)
		printf("%-10s%.0f, not settled yet\n", "rounds",
		       get_number(progress, "rounds"));
	printf("%-10s%.0f of %.0f tried\n", "merged", get_number(merge, "applied"),
	       get_number(merge, "tried"));
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
		       "", get_number(status, "run"));
	if (*end)
		print_wrapped(printf("%-10s", strcmp(state, "ejected") ?
				     "before" : "because"), 10, end);
	if (cJSON_HasObjectItem(status, "pages_sharing"))
		print_numbers(status);
	else
		printf("%-10sshown to root only\n", "counters");
}

int cmd_status(int argc, char **argv)
{
	cJSON *status;
	bool ejected;
	int ret;

	ret = check_support();
	if (ret)
		return ret;

	status = read_status();
	ejected = !strcmp(get_string(status, "state"), "ejected");
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
		if (!strcmp(get_string(item, "name"), name))
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
			cJSON_AddItemToObject(item, "tunables",
					      policy_tunables(&policy));
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

/* All policies that can be found, each name once, as load would take it. */
cJSON *list_policies(void)
{
	char dirs[NR_POLICY_DIRS][PATH_MAX], loaded[64] = "";
	cJSON *list = cJSON_CreateArray();
	int i;

	/* On a kernel without ksm_ext, none is loaded. */
	sysfs_read("policy", loaded, sizeof(loaded));
	policy_dirs(dirs);
	for (i = 0; i < NR_POLICY_DIRS; i++) {
		if (*dirs[i])
			list_dir(list, dirs[i], loaded);
	}
	return list;
}

int cmd_list(int argc, char **argv)
{
	cJSON *list = list_policies();
	const cJSON *item;

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
		       '*' : ' ', get_string(item, "name"),
		       get_string(item, "about"));
	}
	cJSON_Delete(list);
	return KSMX_OK;
}
