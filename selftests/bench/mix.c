// SPDX-License-Identifier: GPL-2.0
/*
 * What a policy gains, and what it costs, while files are written over and over.
 *
 * Twelve pairs of twins are in memory.  Four rest.  Of four, every page is
 * rewritten now and then, with the bytes that it has, in one of the twins: they
 * can be merged again and again, and never for long.  Of four, one twin gets new
 * bytes each time: they are hashed in vain.  Writer and policy run for the same
 * time, on the same processor.  The two variants differ in how often they write:
 * twice a second, or once in ten.
 *
 * Gain is what was saved, times how long it was.  Cost is the processor time of
 * ksm_extd, and that which the writer needs more than without a policy.  Both
 * become one figure by a price, which is measured too: the processor time of
 * reading a page that is not cached.  A page that is saved for a second counts
 * as if it spared one such read.
 */
#include <ctype.h>
#include <dirent.h>

#include "bench.h"

#define NPAGES	128L
#define SIZE	(NPAGES * PAGE)
#define PAIRS	4
#define STEP_NS	500000000ULL

enum { REST, REWRITTEN, CHANGED, NR_KINDS };

FIXTURE(mix) {
	char dir[MAX_PATH];
	struct file twins[NR_KINDS][PAIRS][2];
};

FIXTURE_VARIANT(mix) {
	const char *name;
	int every, steps;	/* a write in each so many, of how many */
	int runs;
};

FIXTURE_VARIANT_ADD(mix, busy)
{
	.name = "busy",
	.every = 1,
	.steps = 40,
	.runs = 3,
};

FIXTURE_VARIANT_ADD(mix, calm)
{
	.name = "calm",
	.every = 20,
	.steps = 100,
	.runs = 1,
};

FIXTURE_SETUP(mix)
{
	struct file f;
	char name[32];

	test_begin(_metadata, self->dir);
	for (int kind = 0; kind < NR_KINDS; kind++) {
		for (int i = 0; i < PAIRS * 2; i++) {
			snprintf(name, sizeof(name), "%d-%d", kind, i);
			file_create(_metadata, &f, self->dir, name, SIZE,
				    1 + kind * PAIRS + i / 2);
			self->twins[kind][i / 2][i % 2] = f;
		}
	}
}

FIXTURE_TEARDOWN(mix)
{
	for (int kind = 0; kind < NR_KINDS; kind++) {
		for (int i = 0; i < PAIRS * 2; i++) {
			struct file *f = &self->twins[kind][i / 2][i % 2];

			check_file(f);
			file_close(f);
		}
	}
	test_end(_metadata, self->dir);
}

/* Processor time in ns, which are instructions in a guest with ICOUNT=1 */
static uint64_t cpu_time(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static uint64_t my_time(void)
{
	return cpu_time(CLOCK_PROCESS_CPUTIME_ID);
}

/* Of the kernel thread that runs policies; it stays, once it is there. */
static uint64_t scan_time(struct __test_metadata *_metadata)
{
	static clockid_t clock;
	struct dirent *entry;
	DIR *proc;

	if (clock)
		return cpu_time(clock);
	proc = opendir("/proc");
	ASSERT_NE(NULL, proc);
	while (!clock && (entry = readdir(proc))) {
		char path[MAX_PATH + 16], comm[32] = "";

		if (!isdigit(entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		read_text(path, comm, sizeof(comm));
		if (!strcmp(comm, "ksm_extd")) {
			ASSERT_EQ(0, clock_getcpuclockid(atoi(entry->d_name),
							 &clock));
		}
	}
	closedir(proc);
	return clock ? cpu_time(clock) : 0;
}

static void wait_until(uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = ns / 1000000000,
		.tv_nsec = ns % 1000000000,
	};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) ==
	       EINTR)
		;
}

static void write_step(struct __test_metadata *_metadata,
		       FIXTURE_DATA(mix) *self, int step)
{
	for (int pair = 0; pair < PAIRS; pair++) {
		struct file *same = &self->twins[REWRITTEN][pair][0];
		struct file *new = &self->twins[CHANGED][pair][0];

		for (size_t off = 0; off < SIZE; off += PAGE) {
			memset(new->want + off, step + 1, sizeof(step));
			ASSERT_EQ(PAGE, pwrite(same->fd, same->want + off,
					       PAGE, off));
			ASSERT_EQ(PAGE, pwrite(new->fd, new->want + off, PAGE,
					       off));
		}
		ASSERT_EQ(0, fsync(same->fd));
		ASSERT_EQ(0, fsync(new->fd));
	}
}

static void tell_mix(const FIXTURE_VARIANT(mix) *variant, const char *policy,
		     int run, const char *what, double value)
{
	char key[64];

	snprintf(key, sizeof(key), "%s.%s.%d.%s", variant->name, policy, run,
		 what);
	result(key, value);
}

/* The same work for each policy, and for none. */
static void run_mix(struct __test_metadata *_metadata, FIXTURE_DATA(mix) *self,
		    const FIXTURE_VARIANT(mix) *variant, const char *policy,
		    int run)
{
	uint64_t start = cpu_time(CLOCK_MONOTONIC), written = 0;
	uint64_t scan = scan_time(_metadata);
	long breaks = all_breaks(_metadata);
	double page_seconds = 0;

	for (int step = 0; step < variant->steps; step++) {
		if (step % variant->every == 0) {
			uint64_t begin = my_time();

			write_step(_metadata, self, step);
			written += my_time() - begin;
		}
		/* Ten looks at what is saved, each for a tenth of the time */
		for (int look = 1; look <= 10; look++) {
			wait_until(start + step * STEP_NS +
				   look * STEP_NS / 10);
			page_seconds += counter(_metadata, "pages_sharing") *
					(STEP_NS / 10) / 1e9;
		}
	}
	tell_mix(variant, policy, run, "page_seconds", page_seconds);
	tell_mix(variant, policy, run, "scan", scan_time(_metadata) - scan);
	tell_mix(variant, policy, run, "write", written);
	tell_mix(variant, policy, run, "breaks", all_breaks(_metadata) - breaks);
}

static void measure_policy(struct __test_metadata *_metadata,
			   FIXTURE_DATA(mix) *self,
			   const FIXTURE_VARIANT(mix) *variant,
			   const char *policy)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "ksmx load %s >/dev/null", policy);
	for (int run = 0; run < variant->runs; run++) {
		ASSERT_EQ(0, system(cmd));
		run_mix(_metadata, self, variant, policy, run);
		ASSERT_EQ(0, system("ksmx unload --unmerge >/dev/null"));
	}
}

TEST_F_TIMEOUT(mix, none, 300)
{
	for (int run = 0; run < variant->runs; run++)
		run_mix(_metadata, self, variant, "none", run);
}

TEST_F_TIMEOUT(mix, all, 300)
{
	measure_policy(_metadata, self, variant, "all");
}

TEST_F_TIMEOUT(mix, adaptive, 300)
{
	measure_policy(_metadata, self, variant, "adaptive");
}

/* What a page costs that is not cached, more than one that is */
TEST_F_TIMEOUT(mix, price, 300)
{
	struct file *f = &self->twins[REST][0][0];
	uint64_t begin, cached, all;

	begin = my_time();
	read_to_cache(_metadata, f);
	cached = my_time() - begin;
	drop_file(_metadata, f);
	ASSERT_EQ(0, resident(_metadata, f));
	begin = my_time();
	read_to_cache(_metadata, f);
	all = my_time() - begin;
	result("price", (double)(all - cached) / NPAGES);
}

int main(int argc, char **argv)
{
	manual_load();
	return test_harness_run(argc, argv);
}
