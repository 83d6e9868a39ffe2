// SPDX-License-Identifier: GPL-2.0
/*
 * explain: which ranges of a file are shared, with whom, and if not, why.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "look.h"

#define PAGE		4096
/* Pages that are explained at a time; their roots fit into the map "wanted". */
#define WINDOW		16384
/* Files that are named of those that share a range */
#define MAX_NAMED	3

/* enum ksm_ext_page_state of the kernel */
enum { STATE_NONE, STATE_OWN, STATE_SHARED };

/* A range of pages of which the same is to be said. */
struct range {
	__u64 first, nr;
	unsigned int state;
	unsigned int refusal;
	unsigned int nr_sharing;
	const struct look_alias *others;	/* who share its first page */
	size_t nr_others;
	__u64 from;		/* first page of the first of them */
};

struct window {
	__u64 first;
	size_t nr;
	struct look_page *pages;
	struct look_alias *aliases;	/* of its roots, sorted */
	size_t nr_aliases, room;
};

static __u64 file_id;
static const char *in_the_way;	/* of the policy, not of the kernel */
static cJSON *ranges;		/* with --json */
static __u64 nr_cached, nr_shared;

/* ---- words ---- */

/* What the kernel's names of refusals mean, and our own that follow. */
static const struct {
	const char *name;
	const char *text;
} reasons[] = {
	{ "gone", "the file left memory" },
	{ "not_cached", "not in memory" },
	{ "ineligible", "files of this kind are never merged" },
	{ "dirty", "written to, and not yet on disk" },
	{ "mlocked", "locked into memory by mlock()" },
	{ "locked", "in use just now" },
	{ "pinned", "pinned by somebody, such as direct I/O" },
	{ "private", "the file system keeps something with the page" },
	{ "full", "its root has max_page_sharing aliases" },
	{ "nomem", "no memory" },
	{ "thrash", "the file's pages were broken by writes too often of late" },
	{ "no_policy", "no policy is loaded: ksmx load POLICY" },
	{ "stopped", "nothing is merged: ksmx set kernel.run=1" },
	{ "dry_run", "the policy only tells what it would merge" },
	{ "no_domain", "the policy never merges this file" },
	{ "not_looked", "the policy has not looked into the file yet" },
	{ "no_equal", "the policy found no equal page in the file's domain" },
};

/* The kernel's own name of a refusal, from its BTF; "" for none. */
static const char *refusal_name(unsigned int refusal)
{
	static const char prefix[] = "KSM_EXT_REFUSED_";
	const struct btf *kernel = kernel_btf();
	const struct btf_type *type;
	int id, i;

	id = btf__find_by_name_kind(kernel, "ksm_ext_refusal", BTF_KIND_ENUM);
	if (id < 0 || !refusal)
		return "";
	type = btf__type_by_id(kernel, id);
	for (i = 0; i < btf_vlen(type); i++) {
		const struct btf_enum *value = btf_enum(type) + i;
		const char *name = btf__name_by_offset(kernel, value->name_off);

		if (value->val == (int)refusal &&
		    !strncmp(name, prefix, strlen(prefix)))
			return name + strlen(prefix);
	}
	return "";
}

/* Has the policy looked into the file?  Most remember that in a map. */
static bool was_looked_into(__u64 id)
{
	struct entry e;
	bool found;

	if (entry_open(&e, NULL, "files", id))
		return true;
	found = e.exists;
	entry_close(&e);
	return found;
}

/* Why pages are not shared that the kernel would let share. */
static const char *find_reason(__u64 id)
{
	char state[32] = "";
	__u64 domain;
	int err;

	sysfs_read("state", state, sizeof(state));
	if (!strcmp(state, "idle"))
		return "stopped";
	err = look_domain(id, &domain);
	if (err == -ESRCH || strcmp(state, "active"))
		return "no_policy";
	if (is_dry_run())
		return "dry_run";
	if (!err && !domain)
		return "no_domain";
	return was_looked_into(id) ? "no_equal" : "not_looked";
}

/* Why the pages of a range are not shared: a name, and what it means. */
static void why_not(const struct range *r, const char **name,
		    const char **text)
{
	size_t i;

	*name = refusal_name(r->refusal);
	if (!**name)
		*name = in_the_way;
	*text = *name;
	for (i = 0; i < ARRAY_SIZE(reasons); i++) {
		if (!strcmp(reasons[i].name, *name))
			*text = reasons[i].text;
	}
}

/* ---- who shares ---- */

static int compare_aliases(const void *a, const void *b)
{
	const struct look_alias *x = a, *y = b;

	if (x->root != y->root)
		return x->root < y->root ? -1 : 1;
	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return x->index == y->index ? 0 : x->index < y->index ? -1 : 1;
}

static int keep_alias(const struct look_alias *alias, void *arg)
{
	struct window *w = arg;
	struct look_alias *more;

	if (w->nr_aliases == w->room) {
		w->room = w->room ? 2 * w->room : 1024;
		more = reallocarray(w->aliases, w->room, sizeof(*more));
		if (!more)
			return -ENOMEM;
		w->aliases = more;
	}
	w->aliases[w->nr_aliases++] = *alias;
	return 0;
}

static int find_aliases(struct window *w)
{
	__u64 *roots = calloc(w->nr, sizeof(*roots));
	size_t nr = 0, i;
	int err = 0;

	if (!roots)
		return -ENOMEM;
	for (i = 0; i < w->nr; i++) {
		if (w->pages[i].root)
			roots[nr++] = w->pages[i].root;
	}
	w->nr_aliases = 0;
	if (nr)
		err = look_for_aliases(roots, nr, keep_alias, w);
	free(roots);
	if (!err && w->nr_aliases)
		qsort(w->aliases, w->nr_aliases, sizeof(*w->aliases),
		      compare_aliases);
	return err;
}

/* The aliases of a root, all in a row. */
static const struct look_alias *aliases_of(const struct window *w, __u64 root,
					   size_t *nr)
{
	size_t low = 0, high = w->nr_aliases, i;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (w->aliases[mid].root < root)
			low = mid + 1;
		else
			high = mid;
	}
	for (i = low; i < w->nr_aliases && w->aliases[i].root == root; i++)
		;
	*nr = i - low;
	return &w->aliases[low];
}

static bool is_self(const struct look_alias *alias, __u64 index)
{
	return alias->file == file_id && index - alias->index < alias->nr;
}

/* How far the page is from the beginning of its root, which may be large. */
static __u64 place_in_root(const struct range *r)
{
	size_t i;

	for (i = 0; i < r->nr_others; i++) {
		if (is_self(&r->others[i], r->first))
			return r->first - r->others[i].index;
	}
	return 0;
}

/* ---- ranges ---- */

static const struct look_alias *first_other(const struct range *r)
{
	size_t i;

	for (i = 0; i < r->nr_others; i++) {
		if (!is_self(&r->others[i], r->first))
			return &r->others[i];
	}
	return NULL;
}

static struct range range_of(const struct window *w, size_t i)
{
	const struct look_page *page = &w->pages[i];
	struct range r = {
		.first = w->first + i,
		.nr = 1,
		.state = page->state,
		.refusal = page->refusal,
		.nr_sharing = page->nr_sharing,
	};
	const struct look_alias *other;

	if (page->root)
		r.others = aliases_of(w, page->root, &r.nr_others);
	other = first_other(&r);
	if (other)
		r.from = other->index + place_in_root(&r);
	return r;
}

/* Is the same to be said of the page behind a range? */
static bool goes_on(const struct range *r, const struct range *next)
{
	const struct look_alias *a = first_other(r), *b = first_other(next);

	if (r->state != next->state)
		return false;
	if (r->state != STATE_SHARED)
		return r->refusal == next->refusal;
	/* Many times the same, such as zeros */
	if (r->others && r->others == next->others && r->others->nr == 1)
		return true;
	return r->nr_sharing == next->nr_sharing && !a == !b &&
	       (!a || (a->file == b->file && next->from == r->from + r->nr));
}

static cJSON *describe_others(const struct range *r)
{
	cJSON *list = cJSON_CreateArray();
	__u64 place = place_in_root(r);
	size_t i;

	for (i = 0; i < r->nr_others; i++) {
		const struct look_alias *other = &r->others[i];
		cJSON *item;

		if (is_self(other, r->first))
			continue;
		item = cJSON_CreateObject();
		cJSON_AddStringToObject(item, "path", look_path(other->file));
		cJSON_AddNumberToObject(item, "file", other->file);
		cJSON_AddNumberToObject(item, "page", other->index + place);
		cJSON_AddItemToArray(list, item);
	}
	return list;
}

static void print_others(const struct range *r)
{
	cJSON *others = describe_others(r);
	const cJSON *item;
	int n = 0;

	cJSON_ArrayForEach(item, others) {
		if (n++ < MAX_NAMED)
			printf("%24s%s, page %.0f\n", "",
			       get_string(item, "path"),
			       get_number(item, "page"));
	}
	if (n > MAX_NAMED)
		printf("%24sand %d more\n", "", n - MAX_NAMED);
	cJSON_Delete(others);
}

static void print_range(const struct range *r)
{
	const char *name, *text;
	char line[128];
	int column;

	column = printf("%10llu - %-9llu ", r->first, r->first + r->nr - 1);
	if (r->state == STATE_SHARED && r->nr_sharing == 1) {
		print_wrapped(column, 24,
			      "shared with nobody: the others were changed, or strict mode");
		return;
	}
	if (r->state == STATE_SHARED) {
		printf("shared by %u pages of files, with\n", r->nr_sharing);
		print_others(r);
		return;
	}
	why_not(r, &name, &text);
	snprintf(line, sizeof(line), "%s (%s)", text, name);
	print_wrapped(column, 24, line);
}

static void describe_range(const struct range *r)
{
	static const char * const states[] = { "not_cached", "own", "shared" };
	cJSON *item = cJSON_CreateObject();
	const char *name, *text;

	cJSON_AddNumberToObject(item, "first", r->first);
	cJSON_AddNumberToObject(item, "nr", r->nr);
	cJSON_AddStringToObject(item, "state",
				r->state < ARRAY_SIZE(states) ?
				states[r->state] : "?");
	if (r->state == STATE_SHARED) {
		cJSON_AddNumberToObject(item, "nr_sharing", r->nr_sharing);
		cJSON_AddItemToObject(item, "with", describe_others(r));
	} else {
		why_not(r, &name, &text);
		cJSON_AddStringToObject(item, "reason", name);
		cJSON_AddStringToObject(item, "text", text);
	}
	cJSON_AddItemToArray(ranges, item);
}

static void tell_range(const struct range *r)
{
	if (!r->nr)
		return;
	if (r->state != STATE_NONE)
		nr_cached += r->nr;
	if (r->state == STATE_SHARED)
		nr_shared += r->nr;
	if (options.json)
		describe_range(r);
	else
		print_range(r);
}

/* @r is the range that the window before has left, and leaves one itself. */
static int explain_window(struct window *w, struct range *r)
{
	struct range next;
	size_t i;
	int err;

	for (i = 0; i < w->nr; i += LOOK_PAGES) {
		size_t nr = w->nr - i < LOOK_PAGES ? w->nr - i : LOOK_PAGES;

		err = look_at(file_id, w->first + i, nr, &w->pages[i]);
		if (err)
			return err;
	}
	err = find_aliases(w);
	if (err)
		return err;

	for (i = 0; i < w->nr; i++) {
		next = range_of(w, i);
		if (r->nr && goes_on(r, &next)) {
			r->nr++;
			continue;
		}
		tell_range(r);
		*r = next;
	}
	/* Who share it are known as long as the window. */
	if (r->state == STATE_SHARED) {
		tell_range(r);
		r->nr = 0;
	}
	return 0;
}

static int explain(__u64 first, __u64 end)
{
	struct window w = { .pages = calloc(WINDOW, sizeof(*w.pages)) };
	int err = w.pages ? 0 : -ENOMEM;
	struct range r = {};

	for (w.first = first; !err && w.first < end; w.first += WINDOW) {
		w.nr = end - w.first < WINDOW ? end - w.first : WINDOW;
		err = explain_window(&w, &r);
	}
	if (!err)
		tell_range(&r);
	free(w.pages);
	free(w.aliases);
	return err;
}

static int parse_offset(const char *text, const struct stat *st,
			__u64 *offset)
{
	char *end;

	errno = 0;
	*offset = strtoull(text, &end, 0);
	if (errno || *end || end == text || *text == '-')
		return fail(KSMX_USAGE, "offset '%s': a number of bytes",
			    text);
	if (*offset >= (__u64)st->st_size)
		return fail(KSMX_USAGE, "offset %s is behind the end, %lld",
			    text, (long long)st->st_size);
	return KSMX_OK;
}

static int report(const char *path, int err)
{
	if (err) {
		cJSON_Delete(ranges);
		return fail(KSMX_FAILED, "cannot look at %s: %s",
			    printable(path), strerror(-err));
	}
	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "path", printable(path));
		cJSON_AddNumberToObject(object, "file", file_id);
		cJSON_AddNumberToObject(object, "cached", nr_cached);
		cJSON_AddNumberToObject(object, "shared", nr_shared);
		cJSON_AddItemToObject(object, "ranges", ranges);
		return print_json(object);
	}
	printf("%llu pages in memory, %llu of them shared\n", nr_cached,
	       nr_shared);
	return KSMX_OK;
}

int cmd_explain(int argc, char **argv)
{
	__u64 first = 0, end;
	struct stat st;
	int fd, ret;

	fd = open(argv[0], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st))
		return fail(errno == EACCES ? KSMX_NO_PRIVILEGE : KSMX_USAGE,
			    "%s: %s", printable(argv[0]), strerror(errno));
	if (!S_ISREG(st.st_mode))
		return fail(KSMX_USAGE, "%s is no regular file",
			    printable(argv[0]));
	end = (st.st_size + PAGE - 1) / PAGE;
	if (argc > 1) {
		ret = parse_offset(argv[1], &st, &first);
		if (ret)
			return ret;
		first /= PAGE;
		end = first + 1;
	}

	ret = look_open();
	if (ret)
		return ret;
	ranges = options.json ? cJSON_CreateArray() : NULL;
	ret = look_up(fd, &file_id);
	if (ret == -EOPNOTSUPP)
		return fail(KSMX_USAGE,
			    "%s: files of this kind are never merged (ineligible)",
			    printable(argv[0]));
	if (!ret) {
		in_the_way = find_reason(file_id);
		ret = explain(first, end);
	}
	return report(argv[0], ret);
}
