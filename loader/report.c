// SPDX-License-Identifier: GPL-2.0
/*
 * What people and programs get to read: errors, JSON, and what libbpf and the
 * verifier had to say when that explains a failure.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

/* Lines of a verifier log to show: its end says what is wrong. */
#define VERIFIER_LINES	8

static char *log_text;
static size_t log_len;
static FILE *log_stream;

static int keep_log(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	if (options.verbose)
		return vfprintf(stderr, fmt, ap);
	if (level == LIBBPF_WARN && log_stream)
		return vfprintf(log_stream, fmt, ap);
	return 0;
}

void report_init(void)
{
	log_stream = open_memstream(&log_text, &log_len);
	libbpf_set_print(keep_log);
}

/* What libbpf said first is the cause, the rest are consequences. */
const char *libbpf_said(void)
{
	char *end;

	if (!log_stream || fflush(log_stream) || !log_len)
		return NULL;
	end = strchr(log_text, '\n');
	if (end)
		*end = '\0';
	return strncmp(log_text, "libbpf: ", 8) ? log_text : log_text + 8;
}

/*
 * The end of the verifier's log, without the statistics that follow it; the
 * last line is the reason.  Return: NULL if there is no such log.
 */
const char *verifier_said(void)
{
	char *begin, *end, *line;
	int lines = 0;

	if (!log_stream || fflush(log_stream) || !log_len)
		return NULL;
	begin = strstr(log_text, "-- BEGIN PROG LOAD LOG --\n");
	if (!begin)
		return NULL;
	begin = strchr(begin, '\n') + 1;
	end = strstr(begin, "\nprocessed ") ?:
	      strstr(begin, "-- END PROG LOAD LOG --");
	if (end)
		*end = '\0';

	line = begin + strlen(begin);
	while (line > begin) {
		if (line[-1] == '\n' && ++lines == VERIFIER_LINES)
			break;
		line--;
	}
	return line;
}

/*
 * How many bytes the character takes that @text begins with; 0 if that is no
 * UTF-8, or not to be printed as it is.
 */
static size_t plain_len(const char *text)
{
	static const unsigned int least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned char first = *text;
	unsigned int code;
	size_t len, i;

	if (first < 0x80)
		return first >= ' ' && first != 0x7f && first != '\\';
	if (first < 0xc0)
		return 0;
	len = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
	/* Of those that begin with more ones than four, this is too much. */
	code = first & (0xff >> len);
	for (i = 1; i < len; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (text[i] & 0x3f);
	}
	/* Longer than need be, half of a pair, too much, or for terminals */
	if (code < least[len] || (code >= 0xd800 && code < 0xe000) ||
	    code > 0x10ffff || code < 0xa0)
		return 0;
	return len;
}

/* Makes all bytes of others than plain characters, and of @keep, \ooo. */
static char *escape(const char *text, const char *keep)
{
	char *escaped = malloc(4 * strlen(text) + 1), *to = escaped;
	size_t len;

	if (!escaped)
		return NULL;
	while (*text) {
		len = strchr(keep, *text) ? 1 : plain_len(text);
		if (len)
			to = mempcpy(to, text, len);
		else
			to += sprintf(to, "\\%03o", (unsigned char)*text);
		text += len ?: 1;
	}
	*to = '\0';
	return escaped;
}

/*
 * A path as it can be shown to terminals and in JSON, on one line.  As in
 * /proc/self/mountinfo, \ooo is a byte.  Return: good until the next call.
 */
const char *printable(const char *path)
{
	static char *escaped;

	free(escaped);
	escaped = escape(path, "");
	return escaped ?: "?";
}

static int print_text(cJSON *object, char *text)
{
	cJSON_Delete(object);
	if (!text)
		return fail(KSMX_FAILED, "out of memory");
	puts(text);
	free(text);
	return KSMX_OK;
}

int print_json(cJSON *object)
{
	return print_text(object, cJSON_Print(object));
}

/* For streams of objects: one a line. */
int print_json_line(cJSON *object)
{
	return print_text(object, cJSON_PrintUnformatted(object));
}

/*
 * Prints the rest of a line that has come to @column, and more lines from
 * @indent on, of words that end before column 80 where that can be.
 */
void print_wrapped(int column, int indent, const char *text)
{
	int start = column, len;

	for (text += strspn(text, " \n"); *text; text += strspn(text, " \n")) {
		len = strcspn(text, " \n");
		if (column > start && column + 1 + len > 79) {
			printf("\n%*s", indent, "");
			start = column = indent;
		}
		if (column > start)
			column += printf(" ");
		column += printf("%.*s", len, text);
		text += len;
	}
	printf("\n");
}

/* Prints one line, or an object {"error", "status"} with --json. */
int fail(int status, const char *fmt, ...)
{
	char *raw = NULL, *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&raw, fmt, ap) < 0)
		raw = NULL;
	va_end(ap);
	/* Logs have several lines, and a path may be printable already. */
	if (raw)
		text = escape(raw, "\n\t\\");

	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "error", text ?: "");
		cJSON_AddNumberToObject(object, "status", status);
		print_json(object);
	} else {
		fprintf(stderr, "ksmx: %s\n", text ?: "out of memory");
	}
	free(text);
	free(raw);
	return status;
}
