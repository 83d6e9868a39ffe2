// SPDX-License-Identifier: GPL-2.0
/*
 * Asking the kernel which pages share: what explain, dump and top have in
 * common.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "look.h"
#include "look.skel.h"

/* The programs; NULL until they are loaded. */
static struct look *skel;

/* Loads the programs.  Return: 0 or a negative errno. */
int look_load(void)
{
	int err;

	if (skel)
		return 0;
	skel = look__open();
	err = skel ? look__load(skel) : -errno;
	if (err) {
		look__destroy(skel);
		skel = NULL;
	}
	return err;
}

/* The same, and reports why that can not be. */
int look_open(void)
{
	int ret, err;

	ret = check_loadable();
	if (ret)
		return ret;
	err = look_load();
	if (!err)
		return KSMX_OK;
	if (err == -EPERM || err == -EACCES)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to load BPF programs: run as root");
	return fail(KSMX_NO_SUPPORT,
		    "this kernel does not tell which pages share: %s",
		    libbpf_said() ?: strerror(-err));
}

static int call(const struct bpf_program *prog, struct look_args *args)
{
	/* Comes back changed */
	LIBBPF_OPTS(bpf_test_run_opts, opts,
		    .ctx_in = args,
		    .ctx_size_in = sizeof(*args));

	if (bpf_prog_test_run_opts(bpf_program__fd(prog), &opts))
		return -errno;
	return args->err;
}

/* The kernel's number for an open file.  Return: 0 or a negative errno. */
int look_up(int fd, __u64 *id)
{
	struct look_args args = { .fd = fd };
	int err = call(skel->progs.look_file, &args);

	*id = args.id;
	return err;
}

/* Facts about up to LOOK_PAGES pages.  Return: 0 or a negative errno. */
int look_at(__u64 id, __u64 index, unsigned int nr, struct look_page *pages)
{
	struct look_args args = { .id = id, .index = index, .nr = nr };
	int err = call(skel->progs.look_pages, &args);

	if (!err)
		memcpy(pages, skel->bss->pages, nr * sizeof(*pages));
	return err;
}

/*
 * The domain that the policy in charge has for a file.
 * Return: 0, -ESRCH without a policy, or another negative errno.
 */
int look_domain(__u64 id, __u64 *domain)
{
	struct look_args args = { .id = id };
	int err = call(skel->progs.look_domain, &args);

	*domain = args.domain;
	return err;
}

/* Undoes the \ooo of mountinfo. */
static void unescape(char *text)
{
	char *to = text;
	unsigned int byte;

	for (; *text; text++) {
		if (*text == '\\' && sscanf(text + 1, "%3o", &byte) == 1) {
			*to++ = byte;
			text += 3;
		} else {
			*to++ = *text;
		}
	}
	*to = '\0';
}

/*
 * Finds out what a path within a file system is here.  Of the mounts that show
 * the file, the one that shows most of the file system is used: others may be
 * those of a container.
 */
static void find_path(unsigned int dev, const char *inside, char *buf,
		      size_t size)
{
	/* As new_encode_dev() has it */
	unsigned int want_major = (dev & 0xfff00) >> 8;
	unsigned int want_minor = (dev & 0xff) | ((dev >> 12) & 0xfff00);
	char line[2 * PATH_MAX], root[PATH_MAX], point[PATH_MAX];
	unsigned int major, minor;
	size_t len, best = PATH_MAX;
	FILE *f = fopen("/proc/self/mountinfo", "re");

	snprintf(buf, size, "(device %u:%u)%s", want_major, want_minor, inside);
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*d %*d %u:%u %4095s %4095s", &major,
			   &minor, root, point) != 4 ||
		    major != want_major || minor != want_minor)
			continue;
		unescape(root);
		unescape(point);
		/* A subvolume or a folder may be mounted, or a file. */
		len = strcmp(root, "/") ? strlen(root) : 0;
		if (len >= best || strncmp(inside, root, len) ||
		    (inside[len] && inside[len] != '/'))
			continue;
		best = len;
		snprintf(buf, size, "%s%s", strcmp(point, "/") ? point : "",
			 inside + len);
	}
	if (f)
		fclose(f);
}

/*
 * A path of the file, where it is known; else its number.
 * Return: as printable().
 */
const char *look_path(__u64 id)
{
	struct look_args args = { .id = id };
	char path[PATH_MAX + LOOK_PATH];

	if (call(skel->progs.look_path, &args))
		snprintf(path, sizeof(path), "(file %llu)", id);
	else
		find_path(args.dev, skel->bss->path, path, sizeof(path));
	return printable(path);
}

static int iterate(const struct bpf_program *prog,
		   int (*tell)(const struct look_alias *alias, void *arg),
		   void *arg)
{
	struct look_alias aliases[256];
	struct bpf_link *link;
	size_t have = 0, i;
	ssize_t n;
	int fd, ret = 0;

	link = bpf_program__attach_iter(prog, NULL);
	if (!link)
		return -errno;
	fd = bpf_iter_create(bpf_link__fd(link));
	if (fd < 0) {
		ret = -errno;
		bpf_link__destroy(link);
		return ret;
	}
	/* A read may end in the midst of one. */
	while (!ret && (n = read(fd, (char *)aliases + have,
				 sizeof(aliases) - have)) != 0) {
		if (n < 0) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			ret = -errno;
			break;
		}
		have += n;
		for (i = 0; i < have / sizeof(*aliases) && !ret; i++)
			ret = tell(&aliases[i], arg);
		n = have % sizeof(*aliases);
		memmove(aliases, (char *)aliases + have - n, n);
		have = n;
	}
	close(fd);
	bpf_link__destroy(link);
	return ret;
}

/*
 * Tells of the shared pages with these roots, or of all.
 * Return: 0, a negative errno, or what @tell returned, which ends it.
 */
int look_for_aliases(const __u64 *roots, size_t nr,
		     int (*tell)(const struct look_alias *alias, void *arg),
		     void *arg)
{
	__u64 root, *prev = NULL;
	__u8 one = 1;
	size_t i;

	while (!bpf_map__get_next_key(skel->maps.wanted, prev, &root,
				      sizeof(root)))
		bpf_map__delete_elem(skel->maps.wanted, &root, sizeof(root), 0);
	for (i = 0; i < nr; i++) {
		int err = bpf_map__update_elem(skel->maps.wanted, &roots[i],
					       sizeof(roots[i]), &one,
					       sizeof(one), BPF_ANY);
		if (err)
			return err;
	}
	skel->bss->all_roots = !roots;
	return iterate(skel->progs.look_aliases, tell, arg);
}

static int nothing_to_tell(const struct look_alias *alias, void *arg)
{
	return 0;
}

static int compare_counts(const void *a, const void *b)
{
	const struct look_count *x = a, *y = b;

	return x->pages == y->pages ? 0 : x->pages < y->pages ? 1 : -1;
}

/*
 * The files that share the most pages, in this order.
 * Return: how many there are, @max at most, or a negative errno.
 */
int look_for_files(struct look_count *top, size_t max)
{
	struct look_count *all = NULL, *more;
	size_t nr = 0, room = 0;
	__u64 key;
	int err;

	while (!bpf_map__get_next_key(skel->maps.counts, NULL, &key,
				      sizeof(key)))
		bpf_map__delete_elem(skel->maps.counts, &key, sizeof(key), 0);
	err = iterate(skel->progs.count_aliases, nothing_to_tell, NULL);
	if (err)
		return err;
	for (err = bpf_map__get_next_key(skel->maps.counts, NULL, &key,
					 sizeof(key)); !err;
	     err = bpf_map__get_next_key(skel->maps.counts, &key, &key,
					 sizeof(key))) {
		if (nr == room) {
			room = room ? 2 * room : 256;
			more = reallocarray(all, room, sizeof(*all));
			if (!more) {
				free(all);
				return -ENOMEM;
			}
			all = more;
		}
		all[nr].id = key;
		if (!bpf_map__lookup_elem(skel->maps.counts, &key, sizeof(key),
					  &all[nr].pages,
					  sizeof(all[nr].pages), 0))
			nr++;
	}
	if (nr)
		qsort(all, nr, sizeof(*all), compare_counts);
	if (nr > max)
		nr = max;
	memcpy(top, all, nr * sizeof(*top));
	free(all);
	return nr;
}
