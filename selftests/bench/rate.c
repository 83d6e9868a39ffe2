// SPDX-License-Identifier: GPL-2.0
/*
 * How fast equal pages are merged, and what memory that takes: by the verb, by
 * policies, by KSM in anonymous memory, and the bound that memory itself sets.
 * All merge the same bytes.
 */
#include <xxhash.h>

#include "bench.h"

#define NPAGES	16384L
#define SIZE	(NPAGES * PAGE)
#define ROUNDS	3

FIXTURE(rate) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins, in two directories */
};

FIXTURE_SETUP(rate)
{
	char sub[MAX_PATH];

	test_begin(_metadata, self->dir);
	for (int i = 0; i < 2; i++) {
		ASSERT_GT(MAX_PATH, snprintf(sub, MAX_PATH, "%s/%c", self->dir,
					     "ab"[i]));
		ASSERT_EQ(0, mkdir(sub, 0755));
		file_create(_metadata, i ? &self->b : &self->a, sub, "twin",
			    SIZE, 1);
	}
}

FIXTURE_TEARDOWN(rate)
{
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

static double pages_per_second(uint64_t begin, uint64_t end)
{
	return NPAGES * 1e9 / (end - begin);
}

/* The host slows down some rounds, and never speeds one up. */
static double fastest(const double *rates)
{
	double best = 0;

	for (int round = 0; round < ROUNDS; round++)
		best = rates[round] > best ? rates[round] : best;
	return best;
}

static long slab_bytes(struct __test_metadata *_metadata)
{
	char line[128];
	long kib = -1;
	FILE *in;

	/* fold what each CPU counted for itself */
	ASSERT_EQ(0, write_text("/proc/sys/vm/stat_refresh", "1"));
	in = fopen("/proc/meminfo", "r");
	ASSERT_NE(NULL, in);
	while (fgets(line, sizeof(line), in))
		sscanf(line, "Slab: %ld kB", &kib);
	fclose(in);
	ASSERT_LT(0, kib);
	return kib * 1024;
}

/* Let every sum be used, or the compiler leaves out what is measured. */
static volatile uint64_t sink;

/* One look at all bytes of both: as a comparison, and as hashes. */
TEST_F_TIMEOUT(rate, bound, 600)
{
	const unsigned char *a = self->a.want, *b = self->b.want;
	double compare[ROUNDS], hash[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t begin = now(), middle;

		for (size_t off = 0; off < SIZE; off += PAGE)
			sink += memcmp(a + off, b + off, PAGE);
		middle = now();
		compare[round] = pages_per_second(begin, middle);
		for (size_t off = 0; off < SIZE; off += PAGE)
			sink += XXH64(a + off, PAGE, 0) + XXH64(b + off, PAGE, 0);
		hash[round] = pages_per_second(middle, now());
	}
	result("compare", fastest(compare));
	result("hash_twice", fastest(hash));
}

TEST_F_TIMEOUT(rate, verb, 600)
{
	double merge[ROUNDS], hash[ROUNDS], bytes[ROUNDS];
	struct manual_args args = { .nr = MANUAL_MAX_RUN };

	manual_attach();
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t begin, middle, end;
		long before;

		read_anew(_metadata, &self->a);
		read_anew(_metadata, &self->b);
		args.dst = file_id(_metadata, &self->a);
		args.src = file_id(_metadata, &self->b);
		before = slab_bytes(_metadata);

		begin = now();
		for (long i = 0; i < NPAGES; i += args.nr) {
			args.dst_index = i;
			ASSERT_EQ(args.nr,
				  manual_call(manual->progs.manual_hash, &args));
		}
		middle = now();
		for (long i = 0; i < NPAGES; i += args.nr) {
			args.dst_index = i;
			args.src_index = i;
			ASSERT_EQ(args.nr,
				  manual_call(manual->progs.manual_merge, &args));
		}
		end = now();

		check_totals(2 * NPAGES);
		hash[round] = pages_per_second(begin, middle);
		merge[round] = pages_per_second(middle, end);
		bytes[round] = (double)(slab_bytes(_metadata) - before) / NPAGES;
	}
	result("verb_hash", fastest(hash));
	result("verb", fastest(merge));
	result("slab", of_many(bytes, ROUNDS));
}

/* From the moment it may run until all is merged, finding the files included */
static void policy_rate(struct __test_metadata *_metadata,
			FIXTURE_DATA(rate) *self, const char *name)
{
	double rate[ROUNDS];
	char command[64];

	snprintf(command, sizeof(command), "ksmx load %s >/dev/null", name);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t begin;

		read_anew(_metadata, &self->a);
		read_anew(_metadata, &self->b);
		ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
		ASSERT_EQ(0, system(command));
		begin = now();
		ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
		/* Nothing tells: the harness ends what never comes true. */
		while (counter(_metadata, "pages_sharing") < NPAGES)
			usleep(1000);
		rate[round] = pages_per_second(begin, now());
		ASSERT_EQ(0, system("ksmx unload >/dev/null"));
	}
	result(name, fastest(rate));
}

TEST_F_TIMEOUT(rate, all, 600)
{
	policy_rate(_metadata, self, "all");
}

TEST_F_TIMEOUT(rate, samefile, 600)
{
	policy_rate(_metadata, self, "samefile");
}

TEST_F_TIMEOUT(rate, ksm, 600)
{
	double rate[ROUNDS], bytes[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		void *a = ksm_map(_metadata, self->a.want, SIZE);
		void *b = ksm_map(_metadata, self->b.want, SIZE);
		long before = slab_bytes(_metadata);
		uint64_t begin = now();

		ksm_merge(_metadata, NPAGES);
		rate[round] = pages_per_second(begin, now());
		bytes[round] = (double)(slab_bytes(_metadata) - before) / NPAGES;
		munmap(a, SIZE);
		munmap(b, SIZE);
		ksm_set(_metadata, "run", "2");
	}
	result("ksm", fastest(rate));
	result("ksm_slab", of_many(bytes, ROUNDS));
}

int main(int argc, char **argv)
{
	manual_load();
	return test_harness_run(argc, argv);
}
