// SPDX-License-Identifier: GPL-2.0
/*
 * Numbers, found by their names in BTF.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ksmx.h"

/* The type behind typedefs, const and volatile. */
const struct btf_type *resolve(const struct btf *btf, __u32 id)
{
	return btf__type_by_id(btf, btf__resolve_type(btf, id));
}

/* Return: the id of the member's type, 0 if there is no such member. */
__u32 find_member(const struct btf *btf, const struct btf_type *type,
		  const char *name, size_t *offset)
{
	const struct btf_member *member = btf_members(type);
	int i;

	for (i = 0; i < btf_vlen(type); i++, member++) {
		if (strcmp(btf__name_by_offset(btf, member->name_off), name))
			continue;
		*offset = btf_member_bit_offset(type, i) / 8;
		return member->type;
	}
	return 0;
}

/* What the kernel has for the name of a constant; 0 if it has none. */
__u32 enum_value(const char *of, const char *name)
{
	const struct btf *btf = kernel_btf();
	const struct btf_type *type;
	int id, i;

	id = btf ? btf__find_by_name_kind(btf, of, BTF_KIND_ENUM) : -1;
	if (id < 0)
		return 0;
	type = btf__type_by_id(btf, id);
	for (i = 0; i < btf_vlen(type); i++) {
		const struct btf_enum *value = btf_enum(type) + i;

		if (!strcmp(btf__name_by_offset(btf, value->name_off), name))
			return value->val;
	}
	return 0;
}

/* Takes NAME=VALUE apart; there may be a path in NAME. */
int parse_setting(const char *setting, char *name, size_t size,
		  const char **value)
{
	const char *equals = strrchr(setting, '=');

	if (!equals || equals == setting ||
	    (size_t)(equals - setting) >= size)
		return fail(KSMX_USAGE, "'%s' is not NAME=NUMBER", setting);
	memcpy(name, setting, equals - setting);
	name[equals - setting] = '\0';
	*value = equals + 1;
	return KSMX_OK;
}

static bool fits(const struct btf_type *type, unsigned long long value)
{
	unsigned int bits = 8 * type->size;
	long long number = value;

	if (bits == 64)
		return true;
	if (btf_int_encoding(type) & BTF_INT_SIGNED)
		return number >= -(1LL << (bits - 1)) &&
		       number < 1LL << (bits - 1);
	if (btf_int_encoding(type) & BTF_INT_BOOL)
		return value <= 1;
	return value < 1ULL << bits;
}

/* Puts the number in @text to @data, if that is not NULL and the number fits. */
int set_number(const struct btf_type *type, void *data, const char *name,
	       const char *text)
{
	unsigned long long value;
	bool is_signed;
	char *end;

	if (!btf_is_int(type) || type->size > sizeof(value))
		return fail(KSMX_USAGE, "'%s' is not a number to be set",
			    name);
	is_signed = btf_int_encoding(type) & BTF_INT_SIGNED;
	errno = 0;
	value = is_signed ? strtoll(text, &end, 0) : strtoull(text, &end, 0);
	if (*end || end == text || (!is_signed && strchr(text, '-')))
		return fail(KSMX_USAGE, "%s: '%s' is not a number%s", name,
			    text, *text == '-' ? " from 0" : "");
	if (errno || !fits(type, value))
		return fail(KSMX_USAGE, "%s: %s is out of range", name, text);
	/* Little endian, as all machines that ksm_ext was built for. */
	if (data)
		memcpy(data, &value, type->size);
	return KSMX_OK;
}

/* The number at @data. */
double get_value(const struct btf_type *type, const void *data)
{
	unsigned long long value = 0;
	unsigned int shift = 64 - 8 * type->size;

	memcpy(&value, data, type->size);
	if (btf_int_encoding(type) & BTF_INT_SIGNED)
		return (long long)(value << shift) >> shift;
	return value;
}
