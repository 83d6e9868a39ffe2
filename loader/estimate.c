// SPDX-License-Identifier: GPL-2.0
/*
 * estimate: how much merging could save, found without the kernel's help.
 *
 * Every page looked at is reduced to a 128-bit hash of its bytes and of its
 * file's trust domain, so that equal keys mean pages that the policies may
 * merge.  The keys seen are kept in a table of bounded size.  When it is full,
 * only keys in one half of all possible ones are kept from then on, later in a
 * quarter, and so on; what is counted of these is multiplied.  Which keys are
 * kept depends on contents alone, so this is a fair sample of all contents.
 */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <linux/magic.h>
#include <linux/types.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "ksmx.h"
#include "ksm_ext_domain.h"

#define PAGE		4096
#define CHUNK		256		/* pages at a time */
#define MAX_COMPLAINTS	10		/* lines about files left out */
#define TICK		0.2		/* s between two updates of the bar */

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC	0x58465342
#endif

/* As in linux/mman.h, which Debian 12 has too old. */
#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif

struct cache_range {
	__u64 off, len;
};

struct cache_counts {
	__u64 nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted;
};

/* Low and high half; 0, 0 is an empty slot. */
struct key {
	uint64_t low, high;
};

static struct {
	struct key *slots;
	size_t size;		/* a power of two */
	size_t used;
	unsigned int level;	/* one in 2^level keys is kept */
} table;

/* Files with several names, to look at them once. */
static struct {
	struct key *slots;
	size_t size;
	size_t used;
	bool full;
} inodes;

/* What a file has in common with those before it, or within itself. */
struct file {
	char *path;
	uint64_t pages;
	uint64_t sampled;	/* of these, pages in the sample */
	uint64_t repeated;	/* of these, pages seen before */
};

static struct {
	uint64_t files, pages, bytes_seen;
	uint64_t lone_pages;	/* of files that share with none */
	uint64_t lone_files;
	uint64_t skipped, other_fs, links;
	struct file *top;	/* smallest number of repeats first */
	size_t nr_top;
} total;

static cJSON *complaints;

/* Progress, if there is somebody to see it. */
static struct {
	bool shown;
	double next;
	uint64_t bytes;		/* of all files */
} bar;

/* ---- tables ---- */

static struct key *find_slot(struct key *slots, size_t size,
			     const struct key *key)
{
	size_t i = key->low & (size - 1);

	while ((slots[i].low || slots[i].high) &&
	       (slots[i].low != key->low || slots[i].high != key->high))
		i = (i + 1) & (size - 1);
	return &slots[i];
}

static bool is_kept(const struct key *key)
{
	return !(key->high & ((1ULL << table.level) - 1));
}

/* Twice the size, or, beyond the limit, half of the keys. */
static int table_grow(void)
{
	size_t size = table.size * 2, i;
	struct key *slots;

	if (!table.size)
		size = 1 << 14;
	/* Both tables exist for a moment. */
	if (table.size && (size + table.size) * sizeof(*slots) >
	    options.memory) {
		size = table.size;
		table.level++;
	}
	slots = calloc(size, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	table.used = 0;
	for (i = 0; i < table.size; i++) {
		struct key *key = &table.slots[i];

		if ((!key->low && !key->high) || !is_kept(key))
			continue;
		*find_slot(slots, size, key) = *key;
		table.used++;
	}
	free(table.slots);
	table.slots = slots;
	table.size = size;
	return 0;
}

/*
 * Return: 1 if these bytes were seen before, 0 if not, -1 if they are not in
 * the sample, or -ENOMEM.
 */
static int add_key(const struct key *key)
{
	struct key *slot;

	while (table.used >= table.size / 4 * 3) {
		int err = table_grow();

		if (err)
			return err;
	}
	if (!is_kept(key))
		return -1;
	slot = find_slot(table.slots, table.size, key);
	if (slot->low || slot->high)
		return 1;
	*slot = *key;
	table.used++;
	return 0;
}

/* How many different contents there are. */
static double distinct(void)
{
	return total.lone_pages + (double)table.used * (1ULL << table.level);
}

/* Its standard deviation: each content is in the sample, or it is not. */
static double deviation(void)
{
	double weight = 1ULL << table.level;

	return sqrt(table.used * weight * (weight - 1));
}

/* How many pages of the file repeat what was seen before. */
static double repeats(const struct file *file)
{
	return file->sampled ? (double)file->pages * file->repeated /
			       file->sampled : 0;
}

/* Return: whether this file was looked at under another name. */
static bool seen_before(const struct stat *st)
{
	struct key id = {
		.low = st->st_ino * 0x9e3779b97f4a7c15ULL,
		.high = st->st_dev + 1,
	};
	struct key *slot;

	if (!inodes.slots) {
		for (inodes.size = 1024; inodes.size * 2 * sizeof(id) <=
		     options.memory / 4;)
			inodes.size *= 2;
		/* Memory that is not touched is not taken. */
		inodes.slots = calloc(inodes.size, sizeof(id));
		if (!inodes.slots)
			return false;
	}
	slot = find_slot(inodes.slots, inodes.size, &id);
	if (slot->low || slot->high)
		return true;
	if (inodes.used >= inodes.size / 4 * 3) {
		inodes.full = true;
		return false;
	}
	*slot = id;
	inodes.used++;
	return false;
}

/* ---- files ---- */

static void __attribute__((format(printf, 2, 3)))
complain(const char *path, const char *fmt, ...)
{
	char *why = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&why, fmt, ap) < 0)
		why = NULL;
	va_end(ap);

	if (total.skipped++ < MAX_COMPLAINTS) {
		if (options.json) {
			cJSON *item = cJSON_CreateObject();

			cJSON_AddStringToObject(item, "path",
						printable(path));
			cJSON_AddStringToObject(item, "why", why ?: "");
			cJSON_AddItemToArray(complaints, item);
		} else {
			fprintf(stderr, "%sksmx: %s: left out: %s\n",
				bar.shown ? "\r\033[K" : "", printable(path),
				why ?: "");
		}
	}
	free(why);
}

/*
 * Does ksm_ext support the file system?  Asked once for each; they are few.
 */
static bool supported_fs(dev_t dev, int fd)
{
	static dev_t known_dev;
	static bool known, answer;
	struct statfs fs;

	if (known && dev == known_dev)
		return answer;
	known = !fstatfs(fd, &fs);
	known_dev = dev;
	answer = known && (fs.f_type == EXT4_SUPER_MAGIC ||
			   fs.f_type == XFS_SUPER_MAGIC ||
			   fs.f_type == BTRFS_SUPER_MAGIC ||
			   fs.f_type == EROFS_SUPER_MAGIC_V1);
	return answer;
}

/* To others than these, mincore(2) says that all is in memory. */
static bool may_know_what_is_cached(const struct stat *st, const char *path)
{
	uid_t uid = geteuid();

	return !uid || uid == st->st_uid || !eaccess(path, W_OK);
}

/* Quick, where the kernel has it: is nothing of the file in memory? */
static bool nothing_cached(int fd)
{
	struct cache_range all = {};
	struct cache_counts counts;

	return !syscall(__NR_cachestat, fd, &all, &counts, 0) &&
	       !counts.nr_cache;
}

/* Counts pages that were read; @len ends with the file. */
static int count_pages(struct file *file, char *data, size_t len,
		       uint64_t domain)
{
	size_t offset;

	/* As in the page cache. */
	memset(data + len, 0, -len % PAGE);
	for (offset = 0; offset < len; offset += PAGE) {
		XXH128_hash_t hash = XXH3_128bits_withSeed(data + offset,
							   PAGE, domain);
		struct key key = { hash.low64, hash.high64 };
		int seen;

		total.pages++;
		file->pages++;
		if (!domain) {
			total.lone_pages++;
			continue;
		}
		seen = add_key(&key);
		if (seen == -ENOMEM)
			return seen;
		file->sampled += seen >= 0;
		file->repeated += seen == 1;
	}
	return 0;
}

/* Reads part of a chunk.  Return: bytes, or a negative errno. */
static ssize_t read_part(int fd, char *data, size_t len, off_t offset)
{
	struct iovec iov = { .iov_base = data, .iov_len = len };
	ssize_t n;

	/* A page that left memory meanwhile must not come back for us. */
	n = preadv2(fd, &iov, 1, offset, options.every_page ? 0 : RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP)
		n = pread(fd, data, len, offset);
	return n < 0 ? -errno : n;
}

/*
 * Looks at the runs of pages of a chunk that are in memory, or at all of them.
 */
static int look_at_chunk(int fd, struct file *file, off_t offset, size_t nr,
			 const unsigned char *resident, uint64_t domain)
{
	static char data[CHUNK * PAGE] __attribute__((aligned(PAGE)));
	size_t i, end;
	ssize_t n;
	int err;

	for (i = 0; i < nr; i = end) {
		end = i + 1;
		if (!options.every_page && !(resident[i] & 1))
			continue;
		while (end < nr && (options.every_page || resident[end] & 1))
			end++;
		n = read_part(fd, data, (end - i) * PAGE,
			      offset + (off_t)i * PAGE);
		if (n == -EAGAIN)
			continue;
		if (n < 0)
			return n;
		err = count_pages(file, data, n, domain);
		if (err)
			return err;
		/* Less than wanted: the rest left memory, or the file. */
	}
	return 0;
}

/* What was not in memory before shall not stay. */
static void drop_pages(int fd, off_t offset, size_t nr,
		       const unsigned char *resident)
{
	size_t i, end;

	for (i = 0; i < nr; i = end) {
		end = i + 1;
		if (resident[i] & 1)
			continue;
		while (end < nr && !(resident[end] & 1))
			end++;
		posix_fadvise(fd, offset + (off_t)i * PAGE, (end - i) * PAGE,
			      POSIX_FADV_DONTNEED);
	}
}

static int look_at_pages(int fd, struct file *file, off_t size,
			 uint64_t domain)
{
	unsigned char resident[CHUNK];
	off_t offset;
	size_t nr;
	void *map;
	int err;

	/* Pages read ahead would seem to have been in memory before. */
	if (options.every_page)
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (offset = 0; offset < size; offset += CHUNK * PAGE) {
		nr = (size - offset + PAGE - 1) / PAGE;
		if (nr > CHUNK)
			nr = CHUNK;
		map = mmap(NULL, nr * PAGE, PROT_READ, MAP_SHARED, fd, offset);
		if (map == MAP_FAILED)
			return -errno;
		err = mincore(map, nr * PAGE, resident) ? -errno : 0;
		munmap(map, nr * PAGE);
		if (err)
			return err;
		err = look_at_chunk(fd, file, offset, nr, resident, domain);
		if (err)
			return err;
		if (options.every_page)
			drop_pages(fd, offset, nr, resident);
	}
	return 0;
}

/* Is the file among the first?  Then remember its path. */
static void rank_file(struct file *file, const char *path)
{
	size_t i = 0;

	if (!file->repeated || !options.nr_files ||
	    (total.nr_top == options.nr_files &&
	     repeats(file) <= repeats(&total.top[0])))
		return;
	file->path = strdup(path);
	if (!file->path)
		return;
	if (total.nr_top == options.nr_files) {
		free(total.top[0].path);
		memmove(&total.top[0], &total.top[1],
			--total.nr_top * sizeof(*total.top));
	}
	while (i < total.nr_top && repeats(&total.top[i]) < repeats(file))
		i++;
	memmove(&total.top[i + 1], &total.top[i],
		(total.nr_top++ - i) * sizeof(*total.top));
	total.top[i] = *file;
}

static int open_file(const char *path)
{
	int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
	int fd = open(path, flags | O_NOATIME);

	return fd < 0 && errno == EPERM ? open(path, flags) : fd;
}

/* Return: 0, or -ENOMEM, which ends it all. */
static int look_at_file(const char *path)
{
	struct file file = {};
	uint64_t domain;
	struct stat st;
	int fd, err = 0;

	fd = open_file(path);
	if (fd < 0 || fstat(fd, &st)) {
		complain(path, "%s", strerror(errno));
		goto out;
	}
	if (!S_ISREG(st.st_mode) || !st.st_size)
		goto out;
	if (st.st_nlink > 1 && seen_before(&st)) {
		total.links++;
		goto out;
	}
	if (!options.any_fs && !supported_fs(st.st_dev, fd)) {
		total.other_fs++;
		goto out;
	}
	if (!options.every_page && !may_know_what_is_cached(&st, path)) {
		complain(path, "only its owner may know what is in memory");
		goto out;
	}

	domain = ksm_ext_domain_of(st.st_mode, st.st_uid, st.st_gid);
	total.files++;
	total.lone_files += !domain;
	if (options.every_page || !nothing_cached(fd))
		err = look_at_pages(fd, &file, st.st_size, domain);
	if (err && err != -ENOMEM) {
		complain(path, "%s", strerror(-err));
		err = 0;
	}
	rank_file(&file, path);
	total.bytes_seen += st.st_size;
out:
	if (fd >= 0)
		close(fd);
	return err;
}

/* ---- trees ---- */

static const char *where(void)
{
	return options.every_page ? "in these files" : "in memory";
}

static void show_bar(const char *path)
{
	struct timespec ts;
	double now, part;
	int filled;

	if (!bar.shown)
		return;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = ts.tv_sec + ts.tv_nsec / 1e9;
	if (path && now < bar.next)
		return;
	bar.next = now + TICK;
	if (!path) {
		fprintf(stderr, "\r\033[K");
		return;
	}
	part = bar.bytes ? (double)total.bytes_seen / bar.bytes : 1;
	if (part > 1)
		part = 1;	/* files grew */
	filled = part * 30;
	fprintf(stderr, "\r[%.*s%*s] %3.0f %%  %llu files, %.0f MiB %s\033[K",
		filled, "##############################", 30 - filled, "",
		100 * part, (unsigned long long)total.files,
		total.pages * PAGE / MIB, where());
}

/* Calls @visit for each regular file.  Return: 0 or what it returned. */
static int walk(char **paths, int (*visit)(const char *path,
					   const struct stat *st),
		bool complaining)
{
	int flags = FTS_PHYSICAL | FTS_NOCHDIR, err = 0;
	FTSENT *entry;
	FTS *fts;

	if (options.one_fs)
		flags |= FTS_XDEV;
	fts = fts_open(paths, flags, NULL);
	if (!fts)
		return -errno;
	while (!err && (entry = fts_read(fts))) {
		switch (entry->fts_info) {
		case FTS_F:
			if (S_ISREG(entry->fts_statp->st_mode))
				err = visit(entry->fts_path,
					    entry->fts_statp);
			break;
		case FTS_DNR:
		case FTS_ERR:
		case FTS_NS:
			if (complaining)
				complain(entry->fts_path, "%s",
					 strerror(entry->fts_errno));
			break;
		}
	}
	fts_close(fts);
	return err;
}

static int add_size(const char *path, const struct stat *st)
{
	bar.bytes += st->st_size;
	return 0;
}

static int visit_file(const char *path, const struct stat *st)
{
	show_bar(path);
	return look_at_file(path);
}

/* ---- report ---- */

static double percent(double part, double whole)
{
	return whole ? 100 * part / whole : 0;
}

static void print_report(double saved)
{
	size_t i;

	printf("%-12s%llu\n", "files", (unsigned long long)total.files);
	printf("%-12s%.1f MiB %s\n", "pages", total.pages * PAGE / MIB,
	       where());
	printf("%-12s%.1f MiB\n", "distinct", (total.pages - saved) * PAGE / MIB);
	printf("%-12s%.1f MiB, %.1f %%, before metadata\n", "savings",
	       saved * PAGE / MIB, percent(saved, total.pages));
	if (total.lone_pages)
		printf("%-12s%.1f MiB, of %llu files that others may write\n",
		       "share none", total.lone_pages * PAGE / MIB,
		       (unsigned long long)total.lone_files);
	if (total.other_fs)
		printf("%-12s%llu files on other file systems than ext4, xfs, btrfs, erofs\n",
		       "left out", (unsigned long long)total.other_fs);
	if (total.skipped)
		printf("%-12s%llu files or folders that could not be read\n",
		       "left out", (unsigned long long)total.skipped);
	printf("%-12s128-bit hash; the kernel would compare the bytes\n",
	       "equal by");
	if (table.level)
		printf("%-12sone in %llu contents, for --memory: give or take %.1f MiB\n",
		       "sampled", 1ULL << table.level,
		       deviation() * PAGE / MIB);
	if (inodes.full)
		printf("%-12ssome files with several names may count twice\n",
		       "note");
	if (total.nr_top)
		printf("\n%10s %7s  %s\n", "MiB again", "of it",
		       "files that repeat what was seen before");
	for (i = total.nr_top; i--;)
		printf("%10.1f %5.0f %%  %s\n",
		       repeats(&total.top[i]) * PAGE / MIB,
		       percent(repeats(&total.top[i]), total.top[i].pages),
		       printable(total.top[i].path));
}

static int print_json_report(double saved)
{
	cJSON *object = cJSON_CreateObject(), *list;
	size_t i;

	cJSON_AddNumberToObject(object, "files", total.files);
	cJSON_AddNumberToObject(object, "page_bytes", PAGE);
	cJSON_AddNumberToObject(object, "pages", total.pages);
	cJSON_AddNumberToObject(object, "distinct", total.pages - saved);
	cJSON_AddNumberToObject(object, "saved_bytes", saved * PAGE);
	cJSON_AddNumberToObject(object, "writable_by_others_pages",
				total.lone_pages);
	cJSON_AddNumberToObject(object, "writable_by_others_files",
				total.lone_files);
	cJSON_AddNumberToObject(object, "other_file_systems", total.other_fs);
	cJSON_AddNumberToObject(object, "other_names", total.links);
	cJSON_AddNumberToObject(object, "unreadable", total.skipped);
	cJSON_AddNumberToObject(object, "sampled_one_in",
				1ULL << table.level);
	cJSON_AddNumberToObject(object, "deviation_pages", deviation());
	cJSON_AddItemToObject(object, "unreadable_first", complaints);
	list = cJSON_AddArrayToObject(object, "top");
	for (i = total.nr_top; i--;) {
		cJSON *item = cJSON_CreateObject();

		cJSON_AddStringToObject(item, "path",
					printable(total.top[i].path));
		cJSON_AddNumberToObject(item, "repeated_bytes",
					repeats(&total.top[i]) * PAGE);
		cJSON_AddNumberToObject(item, "bytes",
					total.top[i].pages * PAGE);
		cJSON_AddItemToArray(list, item);
	}
	return print_json(object);
}

int cmd_estimate(int argc, char **argv)
{
	double saved;
	int i, err;

	/* All or nothing: a typo must not make the figure smaller. */
	for (i = 0; i < argc; i++) {
		struct stat st;

		if (lstat(argv[i], &st))
			return fail(KSMX_USAGE, "%s: %s", printable(argv[i]),
				    strerror(errno));
	}
	complaints = cJSON_CreateArray();
	/* One more than shown, for a moment. */
	total.top = calloc(options.nr_files + 1, sizeof(*total.top));
	if (!total.top)
		return fail(KSMX_FAILED, "out of memory");

	bar.shown = isatty(STDERR_FILENO) && !options.json;
	err = bar.shown ? walk(argv, add_size, false) : 0;
	err = err ?: walk(argv, visit_file, true);
	show_bar(NULL);
	if (err)
		return fail(KSMX_FAILED, "%s", strerror(-err));

	saved = total.pages - distinct();
	if (saved < 0)
		saved = 0;	/* of a sample */
	if (options.json)
		return print_json_report(saved);
	print_report(saved);
	return KSMX_OK;
}
