// SPDX-License-Identifier: GPL-2.0
/*
 * ksmx: the command line.
 */
#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

struct options options;

const char *argp_program_version = "ksmx " KSMX_VERSION;

static const struct command {
	const char *name;
	bool takes_policy;
	int (*run)(const char *policy);
} commands[] = {
	{ "load", true, cmd_load },
	{ "swap", true, cmd_swap },
	{ "unload", false, cmd_unload },
	{ "status", false, cmd_status },
	{ "list", false, cmd_list },
};

static const struct command *command;
static const char *policy;

static const char doc[] =
	"Merge equal pages of files in memory: load and watch ksm_ext policies."
	"\v"
	"Commands:\n"
	"  load POLICY   put a policy in charge\n"
	"  swap POLICY   let another policy take over; what is merged stays\n"
	"  unload        merge nothing new; what is merged stays\n"
	"  status        what is in charge and what it achieved\n"
	"  list          policies that can be loaded, * marks the loaded one\n"
	"\n"
	"POLICY is a name (NAME.bpf.o is looked for in $KSMX_POLICY_DIR, beside\n"
	"ksmx, in /usr/lib/ksm_ext) or a file (with a slash, or ending in .bpf.o).\n"
	"\n"
	"Examples:\n"
	"  ksmx load samefile\n"
	"  ksmx swap all --set idle_ms=5000 --set candidates.max_entries=1000000\n"
	"  ksmx --json status\n"
	"  bpftool map dump pinned " PIN_MAPS "/progress\n"
	"  ksmx unload && echo 2 > " SYSFS "/run    # unmerge everything\n"
	"\n"
	"Exit status:\n"
	"  0  done\n"
	"  1  the kernel refused, or another failure\n"
	"  2  usage\n"
	"  3  the running system lacks something: ksm_ext, BTF, a bpf file system\n"
	"  4  not permitted\n"
	"  5  no such policy, or not one that this kernel can load\n"
	"  6  wrong state: already loaded, or nothing loaded\n"
	"  7  status: the policy was ejected";

static const struct argp_option argp_options[] = {
	{ "json", 'j', NULL, 0, "Print JSON, errors too", 0 },
	{ "set", 's', "NAME=NUMBER", 0,
	  "For load and swap: set a tunable of the policy, or the size of a map (MAP.max_entries)",
	  0 },
	{ "verbose", 'v', NULL, 0, "Show what libbpf and the verifier say", 0 },
	{ 0 }
};

static void parse_command(struct argp_state *state, const char *arg)
{
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!strcmp(commands[i].name, arg)) {
			command = &commands[i];
			return;
		}
	}
	argp_error(state, "unknown command '%s'", arg);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 'j':
		options.json = true;
		return 0;
	case 'v':
		options.verbose = true;
		return 0;
	case 's':
		options.sets = realloc(options.sets, (options.nr_sets + 1) *
				       sizeof(*options.sets));
		if (!options.sets)
			argp_failure(state, KSMX_FAILED, 0, "out of memory");
		options.sets[options.nr_sets++] = arg;
		return 0;
	case ARGP_KEY_ARG:
		if (!command)
			parse_command(state, arg);
		else if (command->takes_policy && !policy)
			policy = arg;
		else
			argp_error(state, "%s: one argument too many: '%s'",
				   command->name, arg);
		return 0;
	case ARGP_KEY_END:
		if (!command)
			argp_error(state, "which command?");
		else if (command->takes_policy && !policy)
			argp_error(state, "%s which policy?", command->name);
		else if (!command->takes_policy && options.nr_sets)
			argp_error(state, "%s: --set is for load and swap",
				   command->name);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = argp_options,
		.parser = parse,
		.args_doc = "COMMAND [POLICY]",
		.doc = doc,
	};

	argp_err_exit_status = KSMX_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);

	report_init();
	return command->run(policy);
}
