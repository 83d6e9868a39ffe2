// SPDX-License-Identifier: GPL-2.0
/*
 * How long it takes from a read of a file, on an idle machine, until its pages
 * are merged.
 *
 * The machine has files that nobody has read, each with a twin that is in
 * memory and known to the policy.  One after the other is read, on each
 * processor in turn, after a pause of another length each time.  The time is
 * from just before the read, which counts, to the last page that is merged, as
 * a tracepoint tells it: nobody asks, so that the machine is idle.
 *
 * In a guest with ICOUNT=1, and with BENCH_ICOUNT=1, that time is the number of
 * instructions, and does not depend on the host.  With BENCH_P99_MS=n it then
 * fails if more than one file in a hundred takes longer.
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "bench.h"
#include "../bpf/trace.h"
#include "trace.skel.h"

#define NFILES	240
#define NPAGES	4
#define SIZE	(NPAGES * PAGE)

FIXTURE(fresh) {
	char dir[MAX_PATH];
	struct file twins[NFILES], files[NFILES];
	struct trace *trace;
	struct ring_buffer *ring;
};

/* Since they were last set to 0 */
static struct {
	unsigned int pages;
	uint64_t last_ns;
} merged;

/*
 * While a guest that counts instructions is idle, QEMU has its clock follow the
 * host's.  So it is kept busy, by a thread that gives way to all others.
 */
static struct {
	sem_t begin;
	atomic_bool on;
} spin;

static void *spin_while_on(void *arg)
{
	struct sched_param param = {};

	if (sched_setscheduler(0, SCHED_IDLE, &param))
		abort();
	for (;;) {
		sem_wait(&spin.begin);
		while (spin.on)
			;
	}
	return NULL;
}

static void spin_init(struct __test_metadata *_metadata)
{
	pthread_t thread;

	ASSERT_EQ(0, sem_init(&spin.begin, 0, 0));
	if (getenv("BENCH_ICOUNT")) {
		ASSERT_EQ(0, pthread_create(&thread, NULL, spin_while_on,
					    NULL));
	}
}

static int note_event(void *ctx, void *data, size_t size)
{
	const struct traced *event = data;

	if (event->kind == TRACE_MERGE) {
		merged.pages += event->nr;
		merged.last_ns = event->time_ns;
	}
	return 0;
}

FIXTURE_VARIANT(fresh) {
	const char *policy;
	bool strict;
};

FIXTURE_VARIANT_ADD(fresh, all) { .policy = "all" };
FIXTURE_VARIANT_ADD(fresh, samefile) { .policy = "samefile" };
FIXTURE_VARIANT_ADD(fresh, all_strict) { .policy = "all", .strict = true };
FIXTURE_VARIANT_ADD(fresh, samefile_strict)
{
	.policy = "samefile",
	.strict = true,
};

FIXTURE_SETUP(fresh)
{
	char name[16], sub[2][MAX_PATH];

	test_begin(_metadata, self->dir);
	for (int i = 0; i < 2; i++) {
		ASSERT_GT(MAX_PATH, snprintf(sub[i], MAX_PATH, "%s/%d",
					     self->dir, i));
		ASSERT_EQ(0, mkdir(sub[i], 0755));
	}
	for (int i = 0; i < NFILES; i++) {
		snprintf(name, sizeof(name), "%d", i);
		file_create(_metadata, &self->twins[i], sub[0], name, SIZE,
			    i + 1);
		file_create(_metadata, &self->files[i], sub[1], name, SIZE,
			    i + 1);
		drop_file(_metadata, &self->files[i]);
		ASSERT_EQ(0, resident(_metadata, &self->files[i]));
	}
	self->trace = trace__open_and_load();
	ASSERT_NE(NULL, self->trace) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, trace__attach(self->trace));
	self->ring = ring_buffer__new(bpf_map__fd(self->trace->maps.events),
				      note_event, NULL, NULL);
	ASSERT_NE(NULL, self->ring);
}

FIXTURE_TEARDOWN(fresh)
{
	ring_buffer__free(self->ring);
	trace__destroy(self->trace);
	for (int i = 0; i < NFILES; i++) {
		check_file(&self->twins[i]);
		check_file(&self->files[i]);
		file_close(&self->twins[i]);
		file_close(&self->files[i]);
	}
	test_end(_metadata, self->dir);
}

static uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void run_on(struct __test_metadata *_metadata, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(set), &set));
}

static void load_policy(struct __test_metadata *_metadata, const char *policy)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "ksmx load %s >/dev/null && "
		 "until [ $(ksmx status --json | jq .progress.quiet) -ge 2 ]; "
		 "do sleep 0.1; done", policy);
	ASSERT_EQ(0, system(cmd));
}

/* Return: ms from just before the read to the last page that is merged */
static double read_to_merged(struct __test_metadata *_metadata,
			     struct ring_buffer *ring, struct file *f)
{
	uint64_t begin;

	ring_buffer__consume(ring);
	merged.pages = 0;
	spin.on = true;
	sem_post(&spin.begin);
	begin = monotonic_ns();
	read_to_cache(_metadata, f);
	while (merged.pages < NPAGES) {
		ASSERT_LT(0, ring_buffer__poll(ring, 20000)) {
			TH_LOG("%u pages of %s are merged", merged.pages,
			       f->path);
		}
	}
	spin.on = false;
	return (merged.last_ns - begin) / 1e6;
}

TEST_F_TIMEOUT(fresh, merged, 300)
{
	static const struct { const char *name; int percent; } marks[] = {
		{ "p50", 50 }, { "p90", 90 }, { "p99", 99 }, { "max", 100 },
	};
	double limit = number_from_env("BENCH_P99_MS", 0);
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	double ms[NFILES];

	spin_init(_metadata);
	set_strict(_metadata, variant->strict);
	load_policy(_metadata, variant->policy);
	for (int i = 0; i < NFILES; i++) {
		run_on(_metadata, i % cpus);
		/* Any phase of what the kernel does in a rhythm */
		usleep(20000 + i * 7919 % 20000);
		ms[i] = read_to_merged(_metadata, self->ring, &self->files[i]);
	}
	ASSERT_EQ(0, self->trace->bss->lost);
	ASSERT_EQ(0, system("ksmx unload >/dev/null"));
	set_strict(_metadata, strict);

	qsort(ms, NFILES, sizeof(*ms), compare_doubles);
	for (size_t i = 0; i < ARRAY_SIZE(marks); i++) {
		double mark = ms[(NFILES * marks[i].percent + 99) / 100 - 1];
		char key[64];

		snprintf(key, sizeof(key), "fresh_%s%s.%s", variant->policy,
			 variant->strict ? "_strict" : "", marks[i].name);
		result(key, mark);
		if (limit && marks[i].percent == 99) {
			EXPECT_TRUE(mark <= limit)
				TH_LOG("%s: %.1f ms", key, mark);
		}
	}
}

int main(int argc, char **argv)
{
	manual_load();
	return test_harness_run(argc, argv);
}
