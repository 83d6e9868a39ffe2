// SPDX-License-Identifier: GPL-2.0
/*
 * The commands of ksmx.  All that is said about them anywhere is said here.
 */
#include <string.h>

#include "ksmx.h"

const char summary[] =
	"Merge equal pages of files in memory: load and watch ksm_ext policies.";

const char * const statuses[NR_KSMX_STATUSES] = {
	[KSMX_OK] = "done",
	[KSMX_FAILED] = "the kernel refused, or another failure",
	[KSMX_USAGE] = "usage: unknown command, option, tunable or value",
	[KSMX_NO_SUPPORT] =
		"the running system lacks something: see ksmx doctor",
	[KSMX_NO_PRIVILEGE] = "not permitted",
	[KSMX_BAD_OBJECT] =
		"no such policy, or not one that this kernel can load",
	[KSMX_WRONG_STATE] = "wrong state: already loaded, or nothing loaded",
	[KSMX_EJECTED] = "status, run: the policy was ejected",
};

const struct argp_option common_options[] = {
	{ "json", 'j', NULL, 0, "Print JSON, errors too", 0 },
	{ "verbose", 'v', NULL, 0, "Show what libbpf and the verifier say", 0 },
	{ 0 }
};

#define SET_OPTION							\
	{ "set", 's', "NAME=NUMBER", 0,					\
	  "Set a tunable of the policy, the size of a map "		\
	  "(MAP.max_entries), a number in one (MAP[KEY].MEMBER), or a "	\
	  "knob of the kernel (kernel.KNOB)", 0 }

static const struct argp_option set_options[] = {
	SET_OPTION,
	{ 0 }
};

static const struct argp_option unload_options[] = {
	{ "unmerge", 'u', NULL, 0,
	  "Also give every file its own pages again", 0 },
	{ 0 }
};

static const struct argp_option metrics_options[] = {
	{ "output", 'o', "FILE", 0,
	  "Write to FILE, replaced in one step, instead of standard output; a "
	  "new one may be read by all, an old one keeps owner and mode", 0 },
	{ 0 }
};

static const struct argp_option estimate_options[] = {
	{ "all", 'a', NULL, 0, "Every page, not only those in memory now", 0 },
	{ "any-fs", 'f', NULL, 0,
	  "Files on file systems that ksm_ext does not support, too", 0 },
	{ "memory", 'm', "SIZE", 0,
	  "Memory for contents seen (K, M, G; default 256M); where it is not "
	  "enough, part of the contents is looked at", 0 },
	{ "top", 'n', "NUMBER", 0,
	  "How many files to show (default 10, at most 1000)", 0 },
	{ "one-file-system", 'x', NULL, 0, "Stay on the file system of PATH",
	  0 },
	{ 0 }
};

#define POLICY_DOC							\
	"POLICY is a name (NAME.bpf.o is looked for in $KSMX_POLICY_DIR, "\
	"beside ksmx, and in ../lib/ksm_ext from there) or a file (with a "\
	"slash, or ending in .bpf.o)."

const struct command commands[] = {
	{
		.name = "load",
		.args = "POLICY",
		.brief = "put a policy in charge",
		.doc = POLICY_DOC "  It stays in charge when ksmx is gone.",
		.examples =
			"ksmx load samefile\n"
			"ksmx load ./mine.bpf.o --set idle_ms=5000",
		.min_args = 1, .max_args = 1, .words = WORDS_POLICY,
		.options = set_options, .run = cmd_load,
	}, {
		.name = "swap",
		.args = "POLICY",
		.brief = "let another policy take over",
		.doc = POLICY_DOC "  What is merged stays merged, and at any "
		       "moment one of the two is in charge.  If the new one "
		       "is refused, the old one goes on; what a change of "
		       "kernel.strict has unmerged by then it merges anew.",
		.examples =
			"ksmx swap all --set candidates.max_entries=1000000",
		.min_args = 1, .max_args = 1, .words = WORDS_POLICY,
		.options = set_options, .run = cmd_swap,
	}, {
		.name = "unload",
		.args = "",
		.brief = "merge nothing new",
		.doc = "What is merged stays merged, unless --unmerge is "
		       "given.",
		.examples =
			"ksmx unload\n"
			"ksmx unload --unmerge",
		.options = unload_options, .run = cmd_unload,
	}, {
		.name = "run",
		.args = "POLICY",
		.brief = "keep a policy in charge while ksmx runs",
		.doc = POLICY_DOC "  A policy that is loaded is replaced as "
		       "by swap.  On SIGTERM or SIGINT the policy is unloaded "
		       "and the exit status is 0, as when somebody else "
		       "unloads it.  When the kernel ejects the policy, the "
		       "record and what the policy had to say (\"dump\") are "
		       "printed, where ksmx may read them, and the exit "
		       "status is 7.  This is what the service "
		       "ksm_ext.service runs.",
		.examples =
			"ksmx run all --set idle_ms=5000 --set kernel.strict=1\n"
			"systemctl start ksm_ext",
		.min_args = 1, .max_args = 1, .words = WORDS_POLICY,
		.options = set_options, .run = cmd_run,
	}, {
		.name = "set",
		.args = "[NAME=NUMBER...]",
		.brief = "change tunables of policy or kernel, or show all",
		.doc = "Tunables are the members of the policy's map "
		       "\"tunables\"; those of the kernel, whose names begin "
		       "with \"kernel.\", are files in "
		       "/sys/kernel/mm/ksm_ext and stay when the policy goes.  "
		       "MAP[KEY].MEMBER is a number in another map of the "
		       "policy; KEY is a number, or the path of a cgroup.  "
		       "Either all that are named change, or none; those of "
		       "the policy at once.  Others can only be set when a "
		       "policy is loaded: see swap.",
		.examples =
			"ksmx set\n"
			"ksmx set idle_ms=5000 pause_ms=10\n"
			"ksmx set kernel.max_cpu_percent=20\n"
			"ksmx set 'budgets[/sys/fs/cgroup/a.slice]."
			"max_merged=10000'",
		.max_args = ANY_NUMBER, .words = WORDS_TUNABLE,
		.run = cmd_set,
	}, {
		.name = "status",
		.args = "",
		.brief = "what is in charge and what it achieved",
		.doc = "Counters are shown to root only.  A policy that only "
		       "tells what it would merge shows that as its report.",
		.examples =
			"ksmx status\n"
			"ksmx status --json | jq .saved_bytes",
		.run = cmd_status,
	}, {
		.name = "list",
		.args = "",
		.brief = "policies that can be loaded",
		.doc = "A star marks the loaded one.",
		.examples = "ksmx list",
		.run = cmd_list,
	}, {
		.name = "explain",
		.args = "PATH [OFFSET]",
		.brief = "which pages of a file are shared, and why not",
		.doc = "For each range of pages of the file, or for the page "
		       "at OFFSET, in bytes: whether it is shared and with "
		       "which files, or why not.  That is what keeps the "
		       "kernel from merging it just now, such as \"dirty\"; "
		       "else \"no_policy\", \"stopped\" (kernel.run), "
		       "\"dry_run\", \"no_domain\" (the policy never merges "
		       "the file), \"not_looked\" (it has not looked into it "
		       "yet), or \"no_equal\".",
		.examples =
			"ksmx explain /usr/bin/git\n"
			"ksmx explain /usr/bin/git 0x10000 --json",
		.min_args = 1, .max_args = 2, .words = WORDS_PATH,
		.run = cmd_explain,
	}, {
		.name = "dump",
		.args = "",
		.brief = "how the last policy ended, and all shared pages",
		.doc = "First the record of the policy that ended last, with "
		       "what it had to say itself; then each shared range of "
		       "each file, with its root.  With --json, one object a "
		       "line.",
		.examples = "ksmx dump | sort | less",
		.run = cmd_dump,
	}, {
		.name = "top",
		.args = "[INTERVAL [COUNT]]",
		.brief = "watch what is merged and broken",
		.doc = "Every INTERVAL seconds (default 2), COUNT times or "
		       "until q is typed.  Plain lines, one for each "
		       "interval, where the output is no terminal.",
		.examples =
			"ksmx top\n"
			"ksmx top 1 60 >log",
		.max_args = 2,
		.run = cmd_top,
	}, {
		.name = "metrics",
		.args = "",
		.brief = "all counters in the OpenMetrics format",
		.doc = "For Prometheus; with --output, for the textfile "
		       "collector of node_exporter.  The kernel shows most of "
		       "these counters to root only, since they tell "
		       "something about others' files; who may read FILE sees "
		       "them, too.",
		.examples =
			"ksmx metrics\n"
			"ksmx metrics -o /var/lib/prometheus/node-exporter/"
			"ksm_ext.prom",
		.options = metrics_options, .run = cmd_metrics,
	}, {
		.name = "estimate",
		.args = "PATH...",
		.brief = "what merging could save, without merging",
		.doc = "Looks at the pages of all regular files in these "
		       "trees, on any kernel.  Equal means the same 128-bit "
		       "hash, and in the same trust domain as the policies "
		       "included understand it: owner, and who may read; "
		       "files that others may write share with none.  The "
		       "page cache is left as it was, as far as that is "
		       "possible.",
		.examples =
			"ksmx estimate /var/lib/containers\n"
			"ksmx estimate --all --top 20 /srv /usr",
		.min_args = 1, .max_args = ANY_NUMBER, .words = WORDS_PATH,
		.options = estimate_options, .run = cmd_estimate,
	}, {
		.name = "doctor",
		.args = "",
		.brief = "what is missing here, and how to get it",
		.doc = "The exit status is that of the first thing without "
		       "which no policy can be loaded.",
		.examples = "ksmx doctor",
		.run = cmd_doctor,
	}, {
		.name = "help",
		.args = "[COMMAND]",
		.brief = "this, or about one command",
		.doc = "With --json, all that there is to say about all "
		       "commands, or about COMMAND.",
		.examples = "ksmx help swap",
		.max_args = 1, .words = WORDS_COMMAND,
		.run = cmd_help,
	},
};

const size_t nr_commands = ARRAY_SIZE(commands);

const struct command *find_command(const char *name)
{
	size_t i;

	for (i = 0; i < nr_commands; i++) {
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	}
	return NULL;
}
