/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Three files A, B and C that share all their pages, and the question whether
 * what a test did to A broke exactly what it had to break.
 */
#ifndef TRIO_H
#define TRIO_H

#include "ksm_ext_test.h"

/*
 * The files end within their last page.  With KSM_EXT_LARGE they are one folio
 * each, to be merged and broken as a whole.
 */
#define NPAGES	8
#define TAIL	(want_large() ? PAGE : 1000)
#define SIZE	((NPAGES - 1) * PAGE + TAIL)

/* Where most tests hit A; not the first page, so that wrong indexes show. */
#define HIT	2

struct trio {
	char dir[MAX_PATH];
	struct file a, b, c;
	unsigned char *junk;	/* NPAGES pages of bytes that no file has */
};

/* For tests that are about single pages, or whose files are made otherwise */
#define SKIP_IF_LARGE()							\
	do {								\
		if (want_large())					\
			SKIP(return, "not for large folios");		\
	} while (0)

#undef check_totals
#define check_totals(want) \
	__check_totals(_metadata, (want) - (want_large() ? (want) % NPAGES : 0), \
		       __LINE__)

static inline void trio_begin(struct __test_metadata *_metadata, struct trio *t)
{
	test_begin(_metadata, t->dir);
	t->junk = page_buffer(_metadata, NPAGES * PAGE);
	fill(t->junk, NPAGES * PAGE, 99);
	file_create(_metadata, &t->a, t->dir, "a", SIZE, 1);
	file_create(_metadata, &t->b, t->dir, "b", SIZE, 1);
	file_create(_metadata, &t->c, t->dir, "c", SIZE, 1);
	if (want_large() && !in_large_folio(_metadata, &t->a, 0))
		SKIP(return, "no large folios here");
	merge_all(&t->b, &t->a);
	merge_all(&t->b, &t->c);
	check_totals(3 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
}

static inline void trio_end(struct __test_metadata *_metadata, struct trio *t)
{
	file_close(&t->a);
	file_close(&t->b);
	file_close(&t->c);
	free(t->junk);
	test_end(_metadata, t->dir);
}

/* All three have the right bytes, in the page cache and on disk. */
static inline void __check_trio(struct __test_metadata *_metadata,
				struct trio *t, int line)
{
	__check_file(_metadata, &t->a, line);
	__check_file(_metadata, &t->b, line);
	__check_file(_metadata, &t->c, line);
	__check_disk(_metadata, &t->a, line);
	__check_disk(_metadata, &t->b, line);
	__check_disk(_metadata, &t->c, line);
}

#define check_trio(t) __check_trio(_metadata, t, __LINE__)

/* A mapping of A whose pages are in the page table, but for writes */
static inline unsigned char *map_a(struct __test_metadata *_metadata,
				   const struct trio *t, int prot, int flags)
{
	unsigned char *map = file_map(_metadata, &t->a, prot, flags);

	touch(map, SIZE);
	return map;
}

/* Change A at byte @off through a mapping, and what it is expected to hold */
static inline void store_a(struct __test_metadata *_metadata, struct trio *t,
			   unsigned char *map, size_t off, const void *buf,
			   size_t len)
{
	memcpy(map + off, buf, len);
	model_write(_metadata, &t->a, off, buf, len);
}

/* The same by a write */
static inline void write_a(struct __test_metadata *_metadata, struct trio *t,
			   size_t off, const void *buf, size_t len)
{
	ASSERT_EQ(len, pwrite(t->a.fd, buf, len, off));
	model_write(_metadata, &t->a, off, buf, len);
}

/*
 * Of A's pages exactly those from @first to before @end are broken; bytes are
 * right everywhere, and what else was shared still is.
 */
static inline void __check_broken(struct __test_metadata *_metadata,
				  struct trio *t, size_t first, size_t end,
				  int line)
{
	if (want_large() && first < end) {
		first = 0;
		end = NPAGES;
	}
	__check_file(_metadata, &t->a, line);
	__check_file(_metadata, &t->b, line);
	__check_file(_metadata, &t->c, line);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(&t->b, i, &t->c, i);
		if (i >= nr_pages(&t->a))
			continue;
		if (i >= first && i < end) {
			EXPECT_APART(&t->a, i, &t->b, i);
		} else {
			EXPECT_SHARED(&t->a, i, &t->b, i);
		}
	}
	__check_totals(_metadata, 3 * NPAGES - (end - first), line);
	__check_trio(_metadata, t, line);
	if (_metadata->exit_code == KSFT_FAIL)
		TH_LOG("checked from line %d", line);
}

#define check_broken(t, first, end) \
	__check_broken(_metadata, t, first, end, __LINE__)

#endif /* TRIO_H */
