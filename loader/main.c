// SPDX-License-Identifier: GPL-2.0
/*
 * ksmx: the command line, its help, and its completion.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

struct options options = {
	.memory = 256 << 20,
	.nr_files = 10,
};

const char *argp_program_version = "ksmx " KSMX_VERSION;

/* Most files that "estimate" shows. */
#define MAX_FILES	1000

/* The command being parsed, and its arguments. */
struct parsed {
	const struct command *command;
	char **args;
	int nr_args;
};

static void add_set(const char *setting, struct argp_state *state)
{
	options.sets = realloc(options.sets, (options.nr_sets + 1) *
			       sizeof(*options.sets));
	if (!options.sets)
		argp_failure(state, KSMX_FAILED, 0, "out of memory");
	options.sets[options.nr_sets++] = setting;
}

static size_t parse_memory(const char *text, struct argp_state *state)
{
	unsigned long long value;
	unsigned int shift = 0;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (*end)
		shift = *end == 'K' ? 10 : *end == 'M' ? 20 :
			*end == 'G' ? 30 : 64;
	if (errno || end == text || *text == '-' || shift == 64 ||
	    (*end && end[1]) || value > SIZE_MAX >> 1 >> shift ||
	    value << shift < 1 << 20)
		argp_error(state,
			   "--memory: '%s' is no size of 1M or more, as in 256M",
			   text);
	return value << shift;
}

static size_t parse_count(const char *text, struct argp_state *state)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || value > MAX_FILES)
		argp_error(state, "--top: '%s' is no number up to %d", text,
			   MAX_FILES);
	return value;
}

/* The options of all commands; argp lets only those of the table come here. */
static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 'j':
		options.json = true;
		return 0;
	case 'v':
		options.verbose = true;
		return 0;
	case 's':
		add_set(arg, state);
		return 0;
	case 'u':
		options.unmerge = true;
		return 0;
	case 'o':
		options.output = arg;
		return 0;
	case 'a':
		options.every_page = true;
		return 0;
	case 'f':
		options.any_fs = true;
		return 0;
	case 'x':
		options.one_fs = true;
		return 0;
	case 'm':
		options.memory = parse_memory(arg, state);
		return 0;
	case 'n':
		options.nr_files = parse_count(arg, state);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static error_t parse_in_command(int key, char *arg, struct argp_state *state)
{
	struct parsed *parsed = state->input;

	switch (key) {
	case ARGP_KEY_ARGS:
		parsed->args = state->argv + state->next;
		parsed->nr_args = state->argc - state->next;
		return 0;
	case ARGP_KEY_END:
		if (parsed->nr_args < parsed->command->min_args)
			argp_error(state, "%s is missing",
				   parsed->command->args);
		if (parsed->nr_args > parsed->command->max_args)
			argp_error(state, "one argument too many: '%s'",
				   parsed->args[parsed->command->max_args]);
		return 0;
	}
	return parse_option(key, arg, state);
}

static const struct argp common_argp = {
	.options = common_options,
	.parser = parse_option,
};

static const struct argp_child common_child[] = {
	{ &common_argp, 0, NULL, 0 },
	{ 0 }
};

/* What "ksmx COMMAND --help" has around the options. */
static char *command_doc(const struct command *command)
{
	char *doc, *examples, *p;

	if (asprintf(&examples, "\n%s", command->examples) < 0)
		return NULL;
	if (asprintf(&doc, "%c%s.\n\n%s\vExamples:",
		     toupper(command->brief[0]), command->brief + 1,
		     command->doc) < 0)
		doc = NULL;
	for (p = strtok(examples, "\n"); p && doc; p = strtok(NULL, "\n")) {
		char *more;

		if (asprintf(&more, "%s\n  %s", doc, p) < 0)
			more = NULL;
		free(doc);
		doc = more;
	}
	free(examples);
	return doc;
}

static int with_argp(const struct command *command,
		     int (*what)(const struct argp *argp, void *arg), void *arg)
{
	struct argp argp = {
		.options = command->options,
		.parser = parse_in_command,
		.args_doc = command->args,
		.children = common_child,
	};
	char *doc = command_doc(command);
	int ret;

	argp.doc = doc;
	ret = what(&argp, arg);
	free(doc);
	return ret;
}

struct command_line {
	int argc;
	char **argv;
	struct parsed *parsed;
};

static int parse_command(const struct argp *argp, void *arg)
{
	struct command_line *line = arg;

	return argp_parse(argp, line->argc, line->argv, 0, NULL, line->parsed);
}

/* Commands begin with the first word that is no option. */
static error_t parse_main(int key, char *arg, struct argp_state *state)
{
	struct parsed *parsed = state->input;
	struct command_line line = { .parsed = parsed };
	static char name[64];

	switch (key) {
	case ARGP_KEY_ARG:
		parsed->command = find_command(arg);
		if (!parsed->command)
			argp_error(state, "unknown command '%s'", arg);
		snprintf(name, sizeof(name), "ksmx %s", arg);
		line.argc = state->argc - state->next + 1;
		line.argv = state->argv + state->next - 1;
		line.argv[0] = name;
		state->next = state->argc;
		return with_argp(parsed->command, parse_command, &line);
	case ARGP_KEY_END:
		if (!parsed->command)
			argp_error(state, "which command?");
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

/* ---- help ---- */

static char *main_doc(void)
{
	char *doc = NULL, *text = NULL;
	size_t size, i;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		return NULL;
	fprintf(f, "%s\vCommands (ksmx COMMAND --help says more):\n", summary);
	for (i = 0; i < nr_commands; i++) {
		int n = fprintf(f, "  %s%s%s", commands[i].name,
				*commands[i].args ? " " : "",
				commands[i].args);

		fprintf(f, "%*s%s\n", n < 28 ? 28 - n : 1, "",
			commands[i].brief);
	}
	fprintf(f, "\nExamples:\n"
		"  ksmx doctor\n"
		"  ksmx estimate /usr\n"
		"  ksmx load samefile && ksmx top\n"
		"\nExit status:");
	for (i = 0; i < NR_KSMX_STATUSES; i++)
		fprintf(f, "\n  %zu  %s", i, statuses[i]);
	if (!fclose(f))
		doc = text;
	return doc;
}

static struct argp main_argp = {
	.parser = parse_main,
	.args_doc = "COMMAND [ARGUMENT...]",
	.children = common_child,
};

static cJSON *describe_options(const struct argp_option *option)
{
	cJSON *list = cJSON_CreateArray();

	for (; option && option->name; option++) {
		cJSON *item = cJSON_CreateObject();
		char key[2] = { option->key };

		cJSON_AddStringToObject(item, "long", option->name);
		cJSON_AddStringToObject(item, "short", key);
		if (option->arg)
			cJSON_AddStringToObject(item, "arg", option->arg);
		cJSON_AddStringToObject(item, "doc", option->doc);
		cJSON_AddItemToArray(list, item);
	}
	return list;
}

static cJSON *describe_command(const struct command *command)
{
	cJSON *object = cJSON_CreateObject();

	cJSON_AddStringToObject(object, "name", command->name);
	cJSON_AddStringToObject(object, "args", command->args);
	cJSON_AddStringToObject(object, "brief", command->brief);
	cJSON_AddStringToObject(object, "doc", command->doc);
	cJSON_AddStringToObject(object, "examples", command->examples);
	cJSON_AddItemToObject(object, "options",
			      describe_options(command->options));
	return object;
}

static int describe_all(void)
{
	cJSON *object = cJSON_CreateObject(), *list;
	size_t i;

	cJSON_AddStringToObject(object, "version", KSMX_VERSION);
	cJSON_AddStringToObject(object, "summary", summary);
	cJSON_AddItemToObject(object, "options",
			      describe_options(common_options));
	list = cJSON_AddArrayToObject(object, "commands");
	for (i = 0; i < nr_commands; i++)
		cJSON_AddItemToArray(list, describe_command(&commands[i]));
	list = cJSON_AddArrayToObject(object, "statuses");
	for (i = 0; i < NR_KSMX_STATUSES; i++)
		cJSON_AddItemToArray(list, cJSON_CreateString(statuses[i]));
	return print_json(object);
}

static int print_help(const struct argp *argp, void *name)
{
	argp_help(argp, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, name);
	return KSMX_OK;
}

int cmd_help(int argc, char **argv)
{
	const struct command *command;
	char name[64];

	if (!argc)
		return options.json ? describe_all() :
				      print_help(&main_argp, "ksmx");
	command = find_command(argv[0]);
	if (!command)
		return fail(KSMX_USAGE, "unknown command '%s': see ksmx help",
			    argv[0]);
	if (options.json)
		return print_json(describe_command(command));
	snprintf(name, sizeof(name), "ksmx %s", command->name);
	return with_argp(command, print_help, name);
}

/* ---- completion ---- */

static void offer(const char *word, const char *begin, const char *end)
{
	if (!strncmp(word, begin, strlen(begin)))
		printf("%s%s\n", word, end);
}

static void offer_options(const struct argp_option *option, const char *begin)
{
	char text[64];

	for (; option && option->name; option++) {
		snprintf(text, sizeof(text), "--%s", option->name);
		offer(text, begin, "");
	}
}

static void offer_words(enum words words, const char *begin)
{
	cJSON *list = NULL, *item;
	size_t i;

	switch (words) {
	case WORDS_POLICY:
		list = list_policies();
		cJSON_ArrayForEach(item, list)
			offer(get_string(item, "name"), begin, "");
		break;
	case WORDS_TUNABLE:
		list = read_entry("tunables") ?: cJSON_CreateObject();
		add_knobs(list);
		cJSON_ArrayForEach(item, list)
			offer(item->string, begin, "=");
		break;
	case WORDS_COMMAND:
		for (i = 0; i < nr_commands; i++)
			offer(commands[i].name, begin, "");
		break;
	case WORDS_PATH:
	case WORDS_NONE:
		break;
	}
	cJSON_Delete(list);
}

static bool takes_argument(const struct argp_option *option, const char *word)
{
	for (; option && option->name; option++) {
		if (option->arg &&
		    ((word[1] == '-' && !strcmp(word + 2, option->name)) ||
		     (word[1] == option->key && !word[2])))
			return true;
	}
	return false;
}

/* Prints what the last of these words could become, for the shell. */
static int complete(int argc, char **argv)
{
	const struct command *command = NULL;
	const char *last = argc ? argv[argc - 1] : "";
	int i;

	for (i = 0; i < argc - 1 && !command; i++) {
		if (*argv[i] != '-')
			command = find_command(argv[i]);
	}
	if (command && argc > 1 && *argv[argc - 2] == '-' &&
	    takes_argument(command->options, argv[argc - 2]))
		return KSMX_OK;		/* a file or a value: the shell's */
	if (*last == '-') {
		offer("--help", last, "");
		if (!command)
			offer("--version", last, "");
		offer_options(common_options, last);
		if (command)
			offer_options(command->options, last);
	} else {
		offer_words(command ? command->words : WORDS_COMMAND, last);
	}
	return KSMX_OK;
}

/* ---- usage ---- */

/*
 * What is wrong with a command line is found by argp and getopt, which say it
 * in two lines of text and exit.  They write to a buffer instead of to stderr,
 * which glibc lets one replace, and what is in it becomes an error as others.
 */
static struct {
	char *text;
	size_t len;
	FILE *stream, *before;
} said;

static void stop_listening(void)
{
	fclose(said.stream);
	stderr = said.before;
	said.stream = NULL;
}

/* The option may come behind what is wrong. */
static bool wants_json(char **argv)
{
	while (*++argv && strcmp(*argv, "--")) {
		if (!strcmp(*argv, "--json") || !strcmp(*argv, "-j"))
			return true;
	}
	return false;
}

static void report_usage(int status, void *arg)
{
	char **argv = arg, *text;

	if (!said.stream)
		return;
	stop_listening();
	if (!said.len)
		return;
	/* NAME: TEXT, where NAME may be "ksmx COMMAND" */
	said.text[strcspn(said.text, "\n")] = '\0';
	text = strchr(said.text, ':');
	if (!text)
		return;
	*text = '\0';
	options.json |= wants_json(argv);
	fail(status, "%s: see %s --help", text + 2, said.text);
}

static void parse(int argc, char **argv, struct parsed *parsed)
{
	static char name[] = "ksmx";

	argv[0] = name;
	said.stream = open_memstream(&said.text, &said.len);
	said.before = stderr;
	if (said.stream) {
		stderr = said.stream;
		on_exit(report_usage, argv);
	}
	argp_err_exit_status = KSMX_USAGE;
	main_argp.doc = main_doc();
	argp_parse(&main_argp, argc, argv, ARGP_IN_ORDER, NULL, parsed);
	if (said.stream)
		stop_listening();
}

int main(int argc, char **argv)
{
	struct parsed parsed = {};
	int ret;

	report_init();
	if (argc > 1 && !strcmp(argv[1], "--complete"))
		return complete(argc - 2, argv + 2);

	parse(argc, argv, &parsed);

	ret = parsed.command->run(parsed.nr_args, parsed.args);
	if (fflush(stdout) || ferror(stdout))
		return fail(KSMX_FAILED, "cannot write the output: %s",
			    strerror(errno));
	return ret;
}
