// SPDX-License-Identifier: GPL-2.0
/*
 * What can be set in the kernel, as kernel.NAME: files of sysfs.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

#define PREFIX	"kernel."

static struct knob {
	const char *name;
	unsigned int min;
	unsigned int max;
	char value[16];		/* to be set; "" leaves it alone */
	char before[16];
} knobs[] = {
	{ .name = "run", .min = 0, .max = 2 },
	{ .name = "max_page_sharing", .min = 2, .max = UINT_MAX },
	{ .name = "max_cpu_percent", .min = 1, .max = 100 },
	{ .name = "thrash_pages", .min = 0, .max = UINT_MAX },
	{ .name = "strict", .min = 0, .max = 1 },
};

/* Adds all that this kernel has, by name. */
void add_knobs(cJSON *object)
{
	char name[64], value[16];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (!sysfs_read(knobs[i].name, value, sizeof(value)))
			continue;
		snprintf(name, sizeof(name), PREFIX "%s", knobs[i].name);
		cJSON_AddNumberToObject(object, name, atof(value));
	}
}

bool is_knob(const char *setting)
{
	return !strncmp(setting, PREFIX, strlen(PREFIX));
}

/* Takes note of "kernel.NAME=NUMBER" for knobs_write(). */
int knob_set(const char *setting)
{
	struct knob *knob = NULL;
	unsigned long long number;
	const char *value;
	char name[128];
	char *end;
	size_t i;
	int ret;

	ret = parse_setting(setting, name, sizeof(name), &value);
	if (ret)
		return ret;
	for (i = 0; i < ARRAY_SIZE(knobs) && !knob; i++) {
		if (!strcmp(name + strlen(PREFIX), knobs[i].name))
			knob = &knobs[i];
	}
	if (!knob ||
	    !sysfs_read(knob->name, knob->before, sizeof(knob->before)))
		return fail(KSMX_USAGE,
			    "the kernel has no '%s': ksmx set shows all", name);
	errno = 0;
	number = strtoull(value, &end, 0);
	if (errno || *end || end == value || strchr(value, '-') ||
	    number < knob->min || number > knob->max)
		return fail(KSMX_USAGE, "%s: '%s' is not a number from %u to %u",
			    name, value, knob->min, knob->max);
	snprintf(knob->value, sizeof(knob->value), "%llu", number);
	return KSMX_OK;
}

static void restore(size_t nr)
{
	while (nr--) {
		if (*knobs[nr].value)
			sysfs_write(knobs[nr].name, knobs[nr].before);
	}
}

/* Sets all that knob_set() has noted, or none. */
int knobs_write(void)
{
	size_t i;
	int err;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		const struct knob *knob = &knobs[i];

		err = *knob->value ? sysfs_write(knob->name, knob->value) : 0;
		if (!err)
			continue;
		restore(i);
		return fail(err == -EACCES ? KSMX_NO_PRIVILEGE : KSMX_FAILED,
			    "cannot set " PREFIX "%s to %s: %s", knob->name,
			    knob->value, strerror(-err));
	}
	return KSMX_OK;
}

/* Takes knobs_write() back. */
void knobs_restore(void)
{
	restore(ARRAY_SIZE(knobs));
}
