// SPDX-License-Identifier: GPL-2.0
/*
 * crash - write to files until somebody kills the machine, and look after that
 *
 * usage: crash write DIR JOURNAL SEED [FAULT]
 *        crash check DIR JOURNAL
 *
 * Several threads change files, most of whose pages have one of a few contents,
 * so that there is always something to merge.  Each change is written into the
 * journal before it is made, each fsync(2) after it has returned.  The journal
 * is on another machine, which sees every record before the next is made.
 *
 * After a crash each byte of each page must be what it was when the last fsync
 * of the file returned, or what a later change of the page has made of it.  As
 * each thread has files of its own, that is one order of contents, and of bytes
 * that reach the disk at different times each may have come along that order as
 * far as it likes.  In particular
 *  - a file that was cut and made as long as before may end where it was cut,
 *    and what is behind that is as before, zeros, or what came later;
 *  - a page that was cloned has its old bytes or those that its source had then:
 *    cloning writes them out first, so that no older ones of that come along;
 *  - a file that another has taken the place of is one of the two.  The other
 *    had all its bytes on disk before, and the directory is written out at once,
 *    as if by an fsync of the file.
 * A write with RWF_DSYNC, and msync(2) of a page, are an fsync of these bytes
 * alone: they are as they were when it returned, or later, and the file does
 * not end before them.
 *
 * The last argument is a fault, for proof that the check can fail:
 *   nosync	each fsync is only claimed, and all that is like one
 *   nodsync	that goes for RWF_DSYNC and msync alone
 *   neighbour	bytes of another page come to disk
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE		4096
#define THREADS		3
#define FILES		12
#define PAGES		16
#define CONTENTS	3
#define SIZE		(PAGES * PAGE)
#define SYSFS		"/sys/kernel/mm/ksm_ext/"

/* What is done to one page, but for TRUNCATE and those behind NR_CHANGES */
enum kind {
	FULL,		/* write(2) of one of the common contents */
	DIRECT,		/* the same past the page cache */
	PART,		/* write(2) of some bytes */
	STORE,		/* the same through a mapping */
	DSYNC,		/* PART with RWF_DSYNC; SYNCED_RANGE follows */
	MSYNC,		/* STORE and msync(2) of the page; the same */
	PUNCH,		/* hole punch */
	TRUNCATE,	/* cut there, then as long as before */
	CLONE,		/* seed: file << 8 | page that it is cloned from */
	REPLACE,	/* FULL, in a copy that is renamed; SYNCED follows */
	NR_CHANGES,
	SYNCED = NR_CHANGES,	/* fsync(2) has returned */
	SYNCED_RANGE,	/* these bytes are on disk */
	STARTED,	/* all files are as start_content() has them, on disk */
	SHARING,	/* seed: how many pages share memory now */
	BROKEN,		/* seed: how many were broken since STARTED */
};

struct record {
	uint8_t kind;
	uint8_t file;
	uint16_t page;
	uint16_t off;
	uint16_t len;
	uint64_t seed;
};

static int journal, dir_fd;
static const char *fault = "";
static uint64_t first_seed;
static long broken_before;
static bool can_clone;

static uint64_t rnd(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x * 0x2545f4914f6cdd1dULL;
}

static void fill(unsigned char *p, size_t len, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;

	while (len--)
		*p++ = rnd(&x) >> 56;
}

static uint64_t start_content(int page)
{
	return 1 + page % CONTENTS;
}

static void name_of(int file, char *name)
{
	sprintf(name, "f%d", file);
}

static void log_record(const struct record *r)
{
	if (write(journal, r, sizeof(*r)) != sizeof(*r))
		err(2, "journal");
}

static bool is_fault(const char *name)
{
	return !strcmp(fault, name);
}

static long sum_of(const char *pattern)
{
	long sum = 0, n;
	glob_t names;

	if (glob(pattern, 0, NULL, &names))
		errx(2, "%s: not there", pattern);
	for (size_t i = 0; i < names.gl_pathc; i++) {
		FILE *f = fopen(names.gl_pathv[i], "r");

		if (!f || fscanf(f, "%ld", &n) != 1)
			err(2, "%s", names.gl_pathv[i]);
		fclose(f);
		sum += n;
	}
	globfree(&names);
	return sum;
}

/* A policy that was ejected would go unnoticed after what it had merged. */
static void policy_rules(void)
{
	FILE *f = fopen(SYSFS "state", "r");
	char state[16];

	if (!f || fscanf(f, "%15s", state) != 1)
		err(2, "state");
	fclose(f);
	if (strcmp(state, "active"))
		errx(2, "the policy is %s", state);
}

/* Is what is like an fsync only claimed? */
static bool no_range_sync(void)
{
	return is_fault("nosync") || is_fault("nodsync");
}

static int open_file(const char *name, int flags)
{
	int fd = openat(dir_fd, name, O_RDWR | flags, 0644);

	if (fd < 0)
		err(2, "%s", name);
	return fd;
}

static void store(int fd, const struct record *r, const unsigned char *bytes)
{
	char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 (off_t)r->page * PAGE);

	if (map == MAP_FAILED)
		err(2, "mmap");
	memcpy(map + r->off, bytes, r->len);
	if (r->kind == MSYNC && !no_range_sync() && msync(map, PAGE, MS_SYNC))
		err(2, "msync");
	munmap(map, PAGE);
}

static int clone_page(int from, int from_page, int to, int to_page)
{
	struct file_clone_range range = {
		.src_fd = from,
		.src_offset = (off_t)from_page * PAGE,
		.src_length = PAGE,
		.dest_offset = (off_t)to_page * PAGE,
	};

	return ioctl(to, FICLONERANGE, &range);
}

/* A copy of the file that fd is, with one page changed, takes its place. */
static void replace(int fd, const struct record *r, const unsigned char *bytes)
{
	unsigned char *all = malloc(SIZE);
	char name[16], other[16];
	int copy;

	if (!all || pread(fd, all, SIZE, 0) != SIZE)
		err(2, "read of file %d", r->file);
	memcpy(all + r->page * PAGE, bytes, PAGE);
	name_of(r->file, name);
	sprintf(other, "new%d", r->file);
	copy = open_file(other, O_CREAT | O_TRUNC);
	if (pwrite(copy, all, SIZE, 0) != SIZE)
		err(2, "%s", other);
	if (!is_fault("nosync") && fsync(copy))
		err(2, "fsync of %s", other);
	if (renameat(dir_fd, other, dir_fd, name))
		err(2, "rename of %s", other);
	if (!is_fault("nosync") && fsync(dir_fd))
		err(2, "fsync of the directory");
	close(copy);
	free(all);
}

static void change(const int *fds, const int *directs, const struct record *r,
		   const unsigned char *bytes)
{
	struct iovec iov = { (void *)bytes, r->len };
	off_t at = (off_t)r->page * PAGE + r->off;
	int fd = fds[r->file];
	ssize_t n = r->len;

	switch (r->kind) {
	case FULL:
	case PART:
		n = pwrite(fd, bytes, r->len, at);
		break;
	case DIRECT:
		n = pwrite(directs[r->file], bytes, r->len, at);
		break;
	case DSYNC:
		n = pwritev2(fd, &iov, 1, at, no_range_sync() ? 0 : RWF_DSYNC);
		break;
	case STORE:
	case MSYNC:
		store(fd, r, bytes);
		break;
	case PUNCH:
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      at, PAGE))
			n = -1;
		break;
	case TRUNCATE:
		if (ftruncate(fd, at) || ftruncate(fd, SIZE))
			n = -1;
		break;
	case CLONE:
		if (clone_page(fds[r->seed >> 8], r->seed & 0xff, fd, r->page))
			n = -1;
		break;
	case REPLACE:
		replace(fd, r, bytes);
		break;
	}
	if (n != r->len)
		err(2, "change %d of file %d", r->kind, r->file);
}

static int file_of(int thread, uint64_t *x)
{
	return rnd(x) % (FILES / THREADS) * THREADS + thread;
}

/* Each thread has files of its own: what happens to one has one order. */
static void *writer(void *arg)
{
	int me = (intptr_t)arg, fds[FILES], directs[FILES];
	uint64_t x = (first_seed + me) * 0x9e3779b97f4a7c15ULL + 1;
	unsigned char *bytes = aligned_alloc(PAGE, PAGE);
	struct record r;
	char name[16];

	for (int i = me; i < FILES; i += THREADS) {
		name_of(i, name);
		fds[i] = open_file(name, 0);
		directs[i] = open_file(name, O_DIRECT);
	}

	for (uint64_t n = 0; ; n++) {
		memset(&r, 0, sizeof(r));
		r.file = file_of(me, &x);
		r.page = rnd(&x) % PAGES;
		do {
			r.kind = rnd(&x) % NR_CHANGES;
		} while (r.kind == CLONE && !can_clone);
		r.len = PAGE;
		r.seed = 1 + rnd(&x) % CONTENTS;
		switch (r.kind) {
		case PART:
		case STORE:
		case DSYNC:
		case MSYNC:
			r.off = rnd(&x) % PAGE;
			r.len = 1 + rnd(&x) % (PAGE - r.off);
			r.seed = rnd(&x);
			break;
		case TRUNCATE:
			r.off = rnd(&x) % PAGE;
			r.len = PAGE - r.off;
			break;
		case CLONE:
			/* Never from itself */
			r.seed = file_of(me, &x) << 8 |
				 (r.page + 1 + rnd(&x) % (PAGES - 1)) % PAGES;
			break;
		}
		fill(bytes, r.len, r.seed);
		log_record(&r);
		change(fds, directs, &r, bytes);

		switch (r.kind) {
		case MSYNC:
			/* A page goes to disk as a whole. */
			r.off = 0;
			r.len = PAGE;
			/* fall through */
		case DSYNC:
			r.kind = SYNCED_RANGE;
			log_record(&r);
			break;
		case REPLACE:
			name_of(r.file, name);
			close(fds[r.file]);
			close(directs[r.file]);
			fds[r.file] = open_file(name, 0);
			directs[r.file] = open_file(name, O_DIRECT);
			r.kind = SYNCED;
			log_record(&r);
			break;
		}

		if (is_fault("neighbour") && n % 20 == 19) {
			fill(bytes, PAGE, 1 + rnd(&x) % CONTENTS);
			r.page = rnd(&x) % PAGES;
			r.off = 0;
			r.len = PAGE;
			r.kind = FULL;
			change(fds, directs, &r, bytes);
		}

		/* With nodsync, no fsync makes good what was claimed. */
		if (rnd(&x) % 4 == 0 && !is_fault("nodsync")) {
			if (!is_fault("nosync") && fsync(fds[r.file]))
				err(2, "fsync of file %d", r.file);
			r.kind = SYNCED;
			log_record(&r);
			/* Clean pages in memory are what merging is about. */
			for (int i = 0; i < PAGES; i++)
				if (pread(fds[r.file], bytes, PAGE,
					  (off_t)i * PAGE) != PAGE)
					err(2, "read of file %d", r.file);
		}
		if (!me && n % 8 == 0) {
			policy_rules();
			r.kind = SHARING;
			r.seed = sum_of(SYSFS "pages_sharing");
			log_record(&r);
			r.kind = BROKEN;
			r.seed = sum_of(SYSFS "break/*") - broken_before;
			log_record(&r);
		}
	}
	return NULL;
}

static void create_files(void)
{
	static unsigned char bytes[SIZE];
	char name[16];
	int fd;

	for (int p = 0; p < PAGES; p++)
		fill(bytes + p * PAGE, PAGE, start_content(p));
	for (int i = 0; i < FILES; i++) {
		name_of(i, name);
		if (unlinkat(dir_fd, name, 0) && errno != ENOENT)
			err(2, "%s", name);
		fd = open_file(name, O_CREAT | O_EXCL);
		if (pwrite(fd, bytes, SIZE, 0) != SIZE || fsync(fd))
			err(2, "%s", name);
		if (!i) {
			/* These two pages are the same anyway. */
			can_clone = !clone_page(fd, 0, fd, CONTENTS);
			if (!can_clone && errno != EOPNOTSUPP)
				err(2, "clone");
		}
		close(fd);
	}
	if (fsync(dir_fd))
		err(2, "directory");
}

static int do_write(void)
{
	struct record started = { .kind = STARTED };
	pthread_t threads[THREADS];

	create_files();
	broken_before = sum_of(SYSFS "break/*");
	log_record(&started);
	for (intptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, writer, (void *)i))
			errx(2, "no thread");
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 2;
}

/* ---- check ---- */

/* What a page may hold: the bytes as of the last fsync, and all since */
struct versions {
	int nr;
	unsigned char (*bytes)[PAGE];
};

static struct versions may[FILES][PAGES];

/* Where a file was cut since its last fsync: it may end there. */
static struct {
	int nr;
	off_t *sizes;
} cuts[FILES];

static unsigned char *latest(struct versions *v)
{
	return v->bytes[v->nr - 1];
}

/* One more, so far like the last one */
static unsigned char *add_version(int file, int page)
{
	struct versions *v = &may[file][page];

	v->bytes = realloc(v->bytes, (size_t)(v->nr + 1) * PAGE);
	if (!v->bytes)
		err(2, "memory");
	v->nr++;
	if (v->nr > 1)
		memcpy(latest(v), v->bytes[v->nr - 2], PAGE);
	return latest(v);
}

static void add_cut(int file, off_t size)
{
	cuts[file].sizes = realloc(cuts[file].sizes,
				   (cuts[file].nr + 1) * sizeof(size));
	if (!cuts[file].sizes)
		err(2, "memory");
	cuts[file].sizes[cuts[file].nr++] = size;
}

/* What a change makes of a page, or of more */
static void apply(const struct record *r)
{
	unsigned char *bytes = add_version(r->file, r->page);

	switch (r->kind) {
	case PUNCH:
		memset(bytes, 0, PAGE);
		break;
	case TRUNCATE:
		memset(bytes + r->off, 0, r->len);
		for (int p = r->page + 1; p < PAGES; p++)
			memset(add_version(r->file, p), 0, PAGE);
		add_cut(r->file, (off_t)r->page * PAGE + r->off);
		break;
	case CLONE:
		memcpy(bytes, latest(&may[r->seed >> 8][r->seed & 0xff]), PAGE);
		break;
	default:
		fill(bytes + r->off, r->len, r->seed);
	}
}

static void settle_file(int file)
{
	for (int p = 0; p < PAGES; p++) {
		struct versions *v = &may[file][p];

		memcpy(v->bytes[0], latest(v), PAGE);
		v->nr = 1;
	}
	cuts[file].nr = 0;
}

/* These bytes are on disk, and so the file does not end before them. */
static void settle_range(const struct record *r)
{
	struct versions *v = &may[r->file][r->page];
	off_t end = (off_t)r->page * PAGE + r->off + r->len;
	int left = 0;

	for (int n = 0; n < v->nr - 1; n++)
		memcpy(v->bytes[n] + r->off, latest(v) + r->off, r->len);
	for (int n = 0; n < cuts[r->file].nr; n++)
		if (cuts[r->file].sizes[n] >= end)
			cuts[r->file].sizes[left++] = cuts[r->file].sizes[n];
	cuts[r->file].nr = left;
}

static void replay(int *changes, int *syncs, long *sharing, long *broken)
{
	bool started = false;
	struct record r;

	while (read(journal, &r, sizeof(r)) == sizeof(r)) {
		switch (r.kind) {
		case STARTED:
			for (int f = 0; f < FILES; f++)
				for (int p = 0; p < PAGES; p++)
					fill(add_version(f, p), PAGE,
					     start_content(p));
			started = true;
			break;
		case SHARING:
			if ((long)r.seed > *sharing)
				*sharing = r.seed;
			break;
		case BROKEN:
			*broken = r.seed;
			break;
		case SYNCED:
			settle_file(r.file);
			++*syncs;
			break;
		case SYNCED_RANGE:
			settle_range(&r);
			++*syncs;
			break;
		default:
			apply(&r);
			++*changes;
		}
	}
	if (!started)
		errx(2, "the journal does not say that the files were made");
}

/* Whose bytes are these? */
static void explain(const unsigned char *bytes)
{
	for (int f = 0; f < FILES; f++)
		for (int p = 0; p < PAGES; p++)
			for (int i = 0; i < may[f][p].nr; i++)
				if (!memcmp(may[f][p].bytes[i], bytes, PAGE)) {
					printf("# page %d of f%d may hold just this\n",
					       p, f);
					return;
				}
}

static bool check_page(int f, int p, const unsigned char *bytes,
		       const char *how)
{
	const struct versions *v = &may[f][p];

	for (int i = 0; i < PAGE; i++) {
		bool right = false;

		for (int n = 0; n < v->nr && !right; n++)
			right = v->bytes[n][i] == bytes[i];
		if (!right) {
			printf("# f%d, page %d by %s: byte %d is 0x%02x, and was 0x%02x at the last fsync, 0x%02x at last, of %d states\n",
			       f, p, how, i, bytes[i], v->bytes[0][i],
			       v->bytes[v->nr - 1][i], v->nr);
			explain(bytes);
			return false;
		}
	}
	return true;
}

static bool may_end_at(int f, off_t size)
{
	for (int i = 0; i < cuts[f].nr; i++)
		if (cuts[f].sizes[i] == size)
			return true;
	return size == SIZE;
}

static int check_file(int f)
{
	unsigned char *bytes = aligned_alloc(PAGE, SIZE);
	static const int flags[] = { O_DIRECT, 0 };
	static const char * const how[] = { "direct read", "read" };
	char name[16];
	int bad = 0;

	name_of(f, name);
	for (int i = 0; i < 2; i++) {
		int fd = openat(dir_fd, name, O_RDONLY | flags[i]);
		struct stat st = {};
		ssize_t n;

		/* There are zeros behind the end, too. */
		memset(bytes, 0, SIZE);
		n = fd < 0 || fstat(fd, &st) ? -1 : read(fd, bytes, SIZE);
		if (n != st.st_size || !may_end_at(f, n)) {
			printf("# %s by %s: %zd bytes, its size is %jd: %s\n",
			       name, how[i], n, (intmax_t)st.st_size,
			       n < 0 ? strerror(errno) : "wrong");
			bad++;
		} else {
			for (int p = 0; p < PAGES; p++)
				bad += !check_page(f, p, bytes + p * PAGE,
						   how[i]);
		}
		close(fd);
	}
	free(bytes);
	return bad;
}

static int do_check(void)
{
	int changes = 0, syncs = 0, bad = 0;
	long sharing = 0, broken = 0;

	replay(&changes, &syncs, &sharing, &broken);
	for (int f = 0; f < FILES; f++)
		bad += check_file(f);
	printf("# %d changes, %d fsyncs, %ld pages shared, %ld broken, %d wrong\n",
	       changes, syncs, sharing, broken, bad);
	if (!sharing || !broken) {
		printf("# nothing was merged or broken, so this shows nothing\n");
		bad++;
	}
	return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	bool writing = argc >= 5 && argc <= 6 && !strcmp(argv[1], "write");

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!writing && !(argc == 4 && !strcmp(argv[1], "check")))
		errx(2, "usage: crash write DIR JOURNAL SEED [FAULT] | check DIR JOURNAL");
	dir_fd = open(argv[2], O_RDONLY | O_DIRECTORY);
	if (dir_fd < 0)
		err(2, "%s", argv[2]);
	journal = open(argv[3], writing ? O_WRONLY | O_APPEND : O_RDONLY);
	if (journal < 0)
		err(2, "%s", argv[3]);
	if (!writing)
		return do_check();
	first_seed = strtoull(argv[4], NULL, 10);
	if (argc == 6)
		fault = argv[5];
	return do_write();
}
