// SPDX-License-Identifier: GPL-2.0
/*
 * oracle - how much could be saved in some trees, and how much is
 *
 * Looks at every page of the trees' regular files that is in the page cache, and
 * prints how many there are, how many different contents they have, and in
 * how many page frames they lie.  Contents count as equal only where the
 * shipped policies may merge them: files of one owner, which nobody else may
 * write.  This uses nothing of ksm_ext: neither its counters nor its hash.
 */
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <search.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define PAGE		4096
#define CHUNK		1024			/* pages mapped at a time */
#define PFN_MASK	((1ULL << 55) - 1)

struct page {
	XXH128_hash_t hash;
	uint64_t domain;
	uint64_t frame;
};

struct file {
	dev_t dev;
	ino_t ino;
};

static struct page *pages;
static size_t nr_pages, max_pages;
static void *files;
static int pagemap;

static void add_page(const void *data, uint64_t domain, uint64_t frame)
{
	struct page *page;

	if (nr_pages == max_pages) {
		max_pages = max_pages ? 2 * max_pages : 65536;
		pages = reallocarray(pages, max_pages, sizeof(*pages));
		if (!pages)
			err(1, "out of memory");
	}
	page = &pages[nr_pages++];
	page->hash = XXH3_128bits(data, PAGE);
	/* A page that may not be merged equals none but itself. */
	page->domain = domain ? domain : UINT64_MAX - nr_pages;
	page->frame = frame;
}

static void look_at(int fd, off_t offset, size_t nr, uint64_t domain)
{
	unsigned char resident[CHUNK];
	uint64_t entries[CHUNK];
	size_t i, size = nr * PAGE;
	char *map;

	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, offset);
	if (map == MAP_FAILED)
		err(1, "mmap");
	if (mincore(map, size, resident))
		err(1, "mincore");

	/* Only a page that was touched has an entry in the page table. */
	for (i = 0; i < nr; i++)
		if (resident[i] & 1)
			(void)*(volatile char *)(map + i * PAGE);
	if (pread(pagemap, entries, nr * 8, (uintptr_t)map / PAGE * 8) !=
	    (ssize_t)(nr * 8))
		err(1, "/proc/self/pagemap");
	for (i = 0; i < nr; i++)
		if (resident[i] & 1)
			add_page(map + i * PAGE, domain, entries[i] & PFN_MASK);
	munmap(map, size);
}

static int compare_files(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct file));
}

static int visit(const char *path, const struct stat *st, int type,
		 struct FTW *ftw)
{
	struct file *file, **known;
	uint64_t domain;
	off_t offset;
	size_t nr;
	int fd;

	if (type != FTW_F || !S_ISREG(st->st_mode) || !st->st_size)
		return 0;
	if (st->st_nlink > 1) {
		file = calloc(1, sizeof(*file));
		if (!file)
			err(1, "out of memory");
		file->dev = st->st_dev;
		file->ino = st->st_ino;
		known = tsearch(file, &files, compare_files);
		if (!known)
			err(1, "out of memory");
		if (*known != file) {
			free(file);
			return 0;
		}
	}

	fd = open(path, O_RDONLY | O_NOATIME);
	if (fd < 0)
		err(1, "%s", path);
	domain = st->st_mode & 022 ? 0 : 1 + (uint64_t)st->st_uid;
	for (offset = 0; offset < st->st_size; offset += CHUNK * PAGE) {
		nr = (st->st_size - offset + PAGE - 1) / PAGE;
		look_at(fd, offset, nr < CHUNK ? nr : CHUNK, domain);
	}
	close(fd);
	return 0;
}

static int compare_contents(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	if (x->domain != y->domain)
		return x->domain < y->domain ? -1 : 1;
	return XXH128_cmp(&x->hash, &y->hash);
}

static int compare_frames(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	return x->frame < y->frame ? -1 : x->frame > y->frame;
}

static size_t distinct(int (*compare)(const void *, const void *))
{
	size_t i, nr = 0;

	qsort(pages, nr_pages, sizeof(*pages), compare);
	for (i = 0; i < nr_pages; i++)
		nr += !i || compare(&pages[i - 1], &pages[i]);
	return nr;
}

int main(int argc, char **argv)
{
	int i;

	if (argc < 2)
		errx(2, "usage: oracle DIRECTORY...");
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		err(1, "/proc/self/pagemap");
	for (i = 1; i < argc; i++)
		if (nftw(argv[i], visit, 64, FTW_PHYS | FTW_MOUNT))
			err(1, "%s", argv[i]);

	printf("%zu %zu", nr_pages, distinct(compare_contents));
	printf(" %zu\n", distinct(compare_frames));
	return 0;
}
