/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the benchmark programs share: a clock, and how results are told.
 *
 * They are programs of the kselftest harness, as the tests are, for what it
 * and ksm_ext_test.h bring along.  But they only measure: they fail when what
 * was to be measured did not happen, never because it took long.
 *
 * Each result is a line "@ KEY VALUE", KEY beginning with $BENCH.
 */
#ifndef BENCH_H
#define BENCH_H

#include <time.h>
#include <x86intrin.h>

#include "../ksm_ext_test.h"

/*
 * Nanoseconds; or, with BENCH_ICOUNT=1 in a guest with ICOUNT=1, instructions:
 * there the time stamp counter advances by one with each.
 */
static inline uint64_t now(void)
{
	static int icount = -1;
	struct timespec ts;

	if (icount < 0)
		icount = getenv("BENCH_ICOUNT") != NULL;
	if (icount)
		return __rdtsc();
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static inline int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/*
 * One figure for many: the median of times, but the least of instructions,
 * since those differ only in what interrupted.
 */
static inline double of_many(double *values, int nr)
{
	qsort(values, nr, sizeof(*values), compare_doubles);
	return values[getenv("BENCH_ICOUNT") ? 0 : nr / 2];
}

static inline void result(const char *key, double value)
{
	printf("@ %s.%s %.2f\n", getenv("BENCH") ?: "bench", key, value);
	fflush(stdout);
}

/* As read from disk: clean, and without what the file system adds at writes. */
static inline void read_anew(struct __test_metadata *_metadata, struct file *f)
{
	/* In strict mode there may be too many at a time. */
	ASSERT_TRUE(WAIT_FOR((drop_file(_metadata, f),
			      !resident(_metadata, f))));
	read_to_cache(_metadata, f);
	drain_lru();
}

/* ---- KSM ---- */

#define KSM_SYSFS "/sys/kernel/mm/ksm/"

static inline void ksm_set(struct __test_metadata *_metadata, const char *name,
			   const char *value)
{
	char path[MAX_PATH];

	snprintf(path, MAX_PATH, KSM_SYSFS "%s", name);
	ASSERT_EQ(0, write_text(path, value)) TH_LOG("%s", path);
}

static inline long ksm_get(struct __test_metadata *_metadata, const char *name)
{
	char path[MAX_PATH], text[64];

	snprintf(path, MAX_PATH, KSM_SYSFS "%s", name);
	ASSERT_EQ(0, read_text(path, text, sizeof(text))) TH_LOG("%s", path);
	return atol(text);
}

/* Anonymous memory that KSM may merge, with @len bytes of @bytes. */
static inline void *ksm_map(struct __test_metadata *_metadata,
			    const void *bytes, size_t len)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, madvise(map, len, MADV_MERGEABLE));
	memcpy(map, bytes, len);
	return map;
}

/* Let ksmd run, as fast as it can, until it has saved @pages. */
static inline void ksm_merge(struct __test_metadata *_metadata, long pages)
{
	ksm_set(_metadata, "pages_to_scan", "1000000");
	ksm_set(_metadata, "sleep_millisecs", "0");
	ksm_set(_metadata, "run", "1");
	/* Nothing tells when ksmd is done: the harness ends what never is. */
	while (ksm_get(_metadata, "pages_sharing") < pages)
		usleep(1000);
}

#endif /* BENCH_H */
