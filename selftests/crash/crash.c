// SPDX-License-Identifier: GPL-2.0
/*
 * crash - write to files until somebody kills the machine, and look after that
 *
 * usage: crash write DIR JOURNAL SEED [nosync|neighbour]
 *        crash check DIR JOURNAL
 *
 * Several threads change files, most of whose pages have one of a few contents,
 * so that there is always something to merge.  Each change is written into the
 * journal before it is made, each fsync(2) after it has returned.  The journal
 * is on another machine, which sees every record before the next is made.
 *
 * After a crash each byte of each page must be what it was when the last fsync
 * of the file returned, or what a later change of the page has made of it.
 *
 * The last argument is a fault, for proof that the check can fail: an fsync
 * that is only claimed, or bytes of another file that come to disk.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE		4096
#define THREADS		3
#define FILES		12
#define PAGES		16
#define CONTENTS	3

/* What is done to one page, but for the last three */
enum kind {
	FULL,		/* write(2) of one of the common contents */
	DIRECT,		/* the same past the page cache */
	PART,		/* write(2) of some bytes */
	STORE,		/* the same through a mapping */
	PUNCH,		/* hole punch */
	NR_CHANGES,
	SYNCED = NR_CHANGES,	/* fsync(2) has returned */
	STARTED,	/* all files are as start_content() has them, on disk */
	SHARING,	/* seed: how many pages share memory now */
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

/* What a change makes of a page */
static void apply(const struct record *r, unsigned char *page)
{
	if (r->kind == PUNCH)
		memset(page, 0, PAGE);
	else
		fill(page + r->off, r->len, r->seed);
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

static long pages_sharing(void)
{
	FILE *f = fopen("/sys/kernel/mm/ksm_ext/pages_sharing", "r");
	long n = -1;

	if (!f || fscanf(f, "%ld", &n) != 1)
		err(2, "pages_sharing");
	fclose(f);
	return n;
}

static void change(int fd, int direct, const struct record *r,
		   const unsigned char *bytes)
{
	off_t at = (off_t)r->page * PAGE + r->off;
	ssize_t n = r->len;
	char *map;

	switch (r->kind) {
	case FULL:
	case PART:
		n = pwrite(fd, bytes, r->len, at);
		break;
	case DIRECT:
		n = pwrite(direct, bytes, r->len, at);
		break;
	case STORE:
		map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   at - r->off);
		if (map == MAP_FAILED)
			err(2, "mmap");
		memcpy(map + r->off, bytes, r->len);
		munmap(map, PAGE);
		break;
	case PUNCH:
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      at, PAGE))
			n = -1;
		break;
	}
	if (n != r->len)
		err(2, "change %d of file %d", r->kind, r->file);
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
		fds[i] = openat(dir_fd, name, O_RDWR);
		directs[i] = openat(dir_fd, name, O_RDWR | O_DIRECT);
		if (fds[i] < 0 || directs[i] < 0)
			err(2, "%s", name);
	}

	for (uint64_t n = 0; ; n++) {
		memset(&r, 0, sizeof(r));
		r.file = rnd(&x) % (FILES / THREADS) * THREADS + me;
		r.page = rnd(&x) % PAGES;
		r.kind = rnd(&x) % NR_CHANGES;
		r.len = PAGE;
		r.seed = 1 + rnd(&x) % CONTENTS;
		if (r.kind == PART || r.kind == STORE) {
			r.off = rnd(&x) % PAGE;
			r.len = 1 + rnd(&x) % (PAGE - r.off);
			r.seed = rnd(&x);
		}
		fill(bytes, r.len, r.seed);
		log_record(&r);
		change(fds[r.file], directs[r.file], &r, bytes);

		if (!strcmp(fault, "neighbour") && n % 20 == 19) {
			fill(bytes, PAGE, 1 + rnd(&x) % CONTENTS);
			r.page = rnd(&x) % PAGES;
			r.off = 0;
			r.len = PAGE;
			r.kind = FULL;
			change(fds[r.file], directs[r.file], &r, bytes);
		}

		if (rnd(&x) % 4 == 0) {
			if (strcmp(fault, "nosync") && fsync(fds[r.file]))
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
			r.kind = SHARING;
			r.seed = pages_sharing();
			log_record(&r);
		}
	}
	return NULL;
}

static void create_files(void)
{
	static unsigned char bytes[PAGES * PAGE];
	char name[16];
	int fd;

	for (int p = 0; p < PAGES; p++)
		fill(bytes + p * PAGE, PAGE, start_content(p));
	for (int i = 0; i < FILES; i++) {
		name_of(i, name);
		if (unlinkat(dir_fd, name, 0) && errno != ENOENT)
			err(2, "%s", name);
		fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0644);
		if (fd < 0 || pwrite(fd, bytes, sizeof(bytes), 0) !=
		    sizeof(bytes) || fsync(fd))
			err(2, "%s", name);
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

static void add_version(struct versions *v, const struct record *r)
{
	v->bytes = realloc(v->bytes, (size_t)(v->nr + 1) * PAGE);
	if (!v->bytes)
		err(2, "memory");
	if (v->nr)
		memcpy(v->bytes[v->nr], v->bytes[v->nr - 1], PAGE);
	apply(r, v->bytes[v->nr]);
	v->nr++;
}

static void replay(int *changes, int *syncs, long *sharing)
{
	bool started = false;
	struct record r;

	while (read(journal, &r, sizeof(r)) == sizeof(r)) {
		if (r.kind == STARTED) {
			for (int f = 0; f < FILES; f++) {
				for (int p = 0; p < PAGES; p++) {
					r.len = PAGE;
					r.seed = start_content(p);
					add_version(&may[f][p], &r);
				}
			}
			started = true;
		} else if (r.kind == SHARING) {
			if ((long)r.seed > *sharing)
				*sharing = r.seed;
		} else if (r.kind == SYNCED) {
			for (int p = 0; p < PAGES; p++) {
				struct versions *v = &may[r.file][p];

				memcpy(v->bytes[0], v->bytes[v->nr - 1], PAGE);
				v->nr = 1;
			}
			++*syncs;
		} else {
			add_version(&may[r.file][r.page], &r);
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

static int check_file(int f)
{
	unsigned char *bytes = aligned_alloc(PAGE, PAGES * PAGE);
	static const int flags[] = { O_DIRECT, 0 };
	static const char * const how[] = { "direct read", "read" };
	char name[16];
	int bad = 0;

	name_of(f, name);
	for (int i = 0; i < 2; i++) {
		int fd = openat(dir_fd, name, O_RDONLY | flags[i]);
		ssize_t n = fd < 0 ? -1 : read(fd, bytes, PAGES * PAGE);

		if (n != PAGES * PAGE) {
			printf("# %s by %s: %zd bytes of %d: %s\n", name, how[i],
			       n, PAGES * PAGE, n < 0 ? strerror(errno) : "short");
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
	long sharing = 0;

	replay(&changes, &syncs, &sharing);
	for (int f = 0; f < FILES; f++)
		bad += check_file(f);
	printf("# %d changes, %d fsyncs, %ld pages shared, %d wrong\n", changes,
	       syncs, sharing, bad);
	if (!sharing) {
		printf("# nothing was merged, so this shows nothing\n");
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
