// SPDX-License-Identifier: GPL-2.0
/*
 * metrics: all counters as OpenMetrics text, which the older Prometheus format
 * of node_exporter's textfile collector takes as well: hence no types but
 * gauge and counter.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksmx.h"

#define PREFIX	"ksm_ext_"

/* What the files of sysfs mean.  Those not listed here are shown, too. */
static const struct meaning {
	const char *name;
	const char *metric;	/* if it has another name */
	const char *unit;	/* ends the metric's name */
	const char *help;
	bool counter;
} meanings[] = {
	{ .name = "run",
	  .help = "Knob: 0 merges nothing new, 1 merges, 2 unmerged all" },
	{ .name = "max_page_sharing",
	  .help = "Knob: most pages of files that share one page" },
	{ .name = "max_cpu_percent",
	  .help = "Knob: most processor time for the policy, in percent" },
	{ .name = "thrash_pages",
	  .help = "Knob: pages of a file broken of late, above which it is not merged; 0: no limit" },
	{ .name = "strict",
	  .help = "Knob: whether the time a write takes is hidden" },
	{ .name = "pages_shared",
	  .help = "Pages of memory that are shared (roots)" },
	{ .name = "pages_sharing",
	  .help = "Pages saved: those that share, less those shared" },
	{ .name = "aliases", .help = "Pages of files that share one" },
	{ .name = "pages_fake",
	  .help = "Pages of files that only look as if they shared one" },
	{ .name = "saved_bytes", .unit = "bytes", .help = "Memory saved" },
	{ .name = "general_profit", .metric = "general_profit_bytes",
	  .unit = "bytes", .help = "Memory saved, less bookkeeping" },
	{ .name = "files_known", .help = "Files that have a number" },
	{ .name = "events_lost", .counter = true,
	  .help = "Breaks and reads that the policy was not told of: too many at a time" },
	{ .name = "slices", .counter = true,
	  .help = "Scans of the loaded policy" },
	{ .name = "cpu_seconds", .unit = "seconds", .counter = true,
	  .help = "Processor time of the scan thread" },
};

/* Folders of sysfs, and maps of the policy: numbers of one kind each. */
static const struct meaning folders[] = {
	{ .name = "merge", .counter = true,
	  .help = "Pairs of pages tried, and what became of them" },
	{ .name = "break", .counter = true,
	  .help = "Pages that got their own copy, by reason" },
	{ .name = "progress", .help = "What the policy says of itself" },
	{ .name = "report", .help = "What the policy has found out" },
};

static const struct meaning *find_meaning(const struct meaning *list,
					  size_t nr, const char *name)
{
	size_t i;

	for (i = 0; i < nr; i++) {
		if (!strcmp(list[i].name, name))
			return &list[i];
	}
	return NULL;
}

static void describe(FILE *out, const char *metric, bool counter,
		     const char *unit, const char *help, const char *source)
{
	fprintf(out, "# HELP " PREFIX "%s %s%s\n", metric,
		help ?: "See the kernel's documentation of ", help ? "" : source);
	fprintf(out, "# TYPE " PREFIX "%s %s\n", metric,
		counter ? "counter" : "gauge");
	if (unit)
		fprintf(out, "# UNIT " PREFIX "%s %s\n", metric, unit);
}

static void write_number(FILE *out, const cJSON *item)
{
	static const struct meaning unknown;
	const struct meaning *m =
		find_meaning(meanings, ARRAY_SIZE(meanings), item->string);
	const char *metric;

	m = m ?: &unknown;
	metric = m->metric ?: item->string;
	describe(out, metric, m->counter, m->unit, m->help, item->string);
	fprintf(out, PREFIX "%s%s %.15g\n", metric, m->counter ? "_total" : "",
		item->valuedouble);
}

/* All files of a folder make one metric, with what they count as a label. */
static void write_folder(FILE *out, const cJSON *folder)
{
	const struct meaning *m =
		find_meaning(folders, ARRAY_SIZE(folders), folder->string);
	bool counter = !m || m->counter;
	const cJSON *item;

	describe(out, folder->string, counter, NULL, m ? m->help : NULL,
		 folder->string);
	cJSON_ArrayForEach(item, folder)
		fprintf(out, PREFIX "%s%s{what=\"%s\"} %.15g\n",
			folder->string, counter ? "_total" : "", item->string,
			item->valuedouble);
}

/* The kernel lets names have letters, digits, _ and - only. */
static void write_state(FILE *out, const cJSON *status)
{
	static const char * const states[] = {
		"none", "active", "idle", "ejected"
	};
	const char *state = get_string(status, "state");
	size_t i;

	describe(out, "state", false, NULL, "1 for the state things are in",
		 "state");
	for (i = 0; i < ARRAY_SIZE(states); i++)
		fprintf(out, PREFIX "state{state=\"%s\"} %d\n", states[i],
			!strcmp(states[i], state));
	describe(out, "policy", false, NULL, "1 for the policy loaded",
		 "policy");
	if (*get_string(status, "policy"))
		fprintf(out, PREFIX "policy{policy=\"%s\"} 1\n",
			get_string(status, "policy"));
}

static void write_metrics(FILE *out)
{
	cJSON *status = read_status();
	const cJSON *item;
	double seconds;

	if (ksm_extd_cpu_seconds(&seconds))
		cJSON_AddNumberToObject(status, "cpu_seconds", seconds);
	write_state(out, status);
	cJSON_ArrayForEach(item, status) {
		if (cJSON_IsNumber(item))
			write_number(out, item);
		else if (cJSON_IsObject(item))
			write_folder(out, item);
	}
	fprintf(out, "# EOF\n");
	cJSON_Delete(status);
}

static int fail_output(const char *temporary)
{
	int ret = fail(errno == EACCES ? KSMX_NO_PRIVILEGE : KSMX_FAILED,
		       "cannot write %s: %s", options.output,
		       strerror(errno));

	if (temporary)
		unlink(temporary);
	return ret;
}

/*
 * A new file is for all: the collector runs as somebody else, and root chose to
 * tell it.  Who is to read one that exists was chosen before.
 */
static int set_readers(int fd)
{
	struct stat st;

	if (lstat(options.output, &st) || !S_ISREG(st.st_mode))
		return fchmod(fd, 0644);
	return fchown(fd, st.st_uid, st.st_gid) ?:
	       fchmod(fd, st.st_mode & 0777);
}

/* Readers see the old file or the new one, also after a crash. */
static int replace_output(void)
{
	char temporary[PATH_MAX];
	FILE *out;
	int fd;

	/* The collector reads *.prom only. */
	if (snprintf(temporary, sizeof(temporary), "%s.XXXXXX",
		     options.output) >= (int)sizeof(temporary)) {
		errno = ENAMETOOLONG;
		return fail_output(NULL);
	}
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return fail_output(NULL);
	out = fdopen(fd, "w");
	if (!out)
		return fail_output(temporary);
	write_metrics(out);
	if (fflush(out) || ferror(out) || set_readers(fd) || fsync(fd)) {
		fclose(out);
		return fail_output(temporary);
	}
	fclose(out);
	if (rename(temporary, options.output))
		return fail_output(temporary);
	return KSMX_OK;
}

int cmd_metrics(int argc, char **argv)
{
	int ret;

	if (options.json && options.output)
		return fail(KSMX_USAGE,
			    "--output writes no JSON: leave out --json, or redirect it");
	ret = check_support();
	if (ret)
		return ret;
	if (options.output)
		return replace_output();
	if (options.json) {
		cJSON *status = read_status();
		double seconds;

		if (ksm_extd_cpu_seconds(&seconds))
			cJSON_AddNumberToObject(status, "cpu_seconds",
						seconds);
		return print_json(status);
	}
	write_metrics(stdout);
	return KSMX_OK;
}
