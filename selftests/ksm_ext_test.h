/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Merging on demand, for tests: the policy "manual" and its verbs, the counters
 * of /sys/kernel/mm/ksm_ext, and a directory for each test.
 *
 * With KSM_EXT_CONTROL=1 in the environment nothing is merged and everything
 * about sharing passes unseen, but all bytes are checked.  What fails then is
 * a fault of the test or of the file system, not of merging.
 *
 * With KSM_EXT_STRICT=1 strict mode is on.
 */
#ifndef KSM_EXT_TEST_H
#define KSM_EXT_TEST_H

#include <sys/sysmacros.h>
#include <linux/types.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "files.h"
#include "bpf/manual.h"
#include "manual.skel.h"

#define KSM_EXT_SYSFS "/sys/kernel/mm/ksm_ext/"

/* How often a call is repeated that may fail for a passing reason. */
#define MAX_TRIES 50

static bool control;
static bool strict;
static struct manual *manual;
static __attribute__((unused)) struct bpf_link *manual_link;

#define SKIP_IF_CONTROL()						\
	do {								\
		if (control) {						\
			SKIP(return, "control run: nothing is merged");	\
		}							\
	} while (0)

static inline unsigned long number_from_env(const char *name,
					    unsigned long value)
{
	const char *text = getenv(name);

	return text && *text ? strtoul(text, NULL, 0) : value;
}

/* ---- sysfs ---- */

static inline long counter(struct __test_metadata *_metadata, const char *name)
{
	char path[MAX_PATH], text[64], *end;
	long value;

	snprintf(path, MAX_PATH, KSM_EXT_SYSFS "%s", name);
	ASSERT_EQ(0, read_text(path, text, sizeof(text))) {
		TH_LOG("%s is missing", path);
	}
	value = strtol(text, &end, 10);
	ASSERT_EQ('\0', *end) TH_LOG("%s is not a number: %s", path, text);
	return value;
}

#define EXPECT_COUNTER(name, value)					\
	do {								\
		if (control)						\
			break;						\
		EXPECT_EQ(value, counter(_metadata, name))		\
			TH_LOG("counter %s", name);			\
	} while (0)

/* No reader may ever see totals that do not fit together. */
static inline void __check_totals(struct __test_metadata *_metadata,
				  long aliases, int line)
{
	if (control)
		return;
	EXPECT_EQ(aliases, counter(_metadata, "aliases")) {
		TH_LOG("line %d: aliases", line);
	}
	EXPECT_EQ(aliases - counter(_metadata, "pages_shared"),
		  counter(_metadata, "pages_sharing")) {
		TH_LOG("line %d: pages_sharing", line);
	}
}

#define check_totals(aliases) __check_totals(_metadata, aliases, __LINE__)

/* How many aliases ended so far, for whatever reason. */
static inline long all_breaks(struct __test_metadata *_metadata)
{
	static const char *const reasons[] = {
		"write_fault", "write", "truncate", "direct_io", "invalidate",
		"unshare", "reclaim", "replaced", "unmerge",
	};
	long sum = 0;

	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++) {
		char name[64];

		snprintf(name, sizeof(name), "break/%s", reasons[i]);
		sum += counter(_metadata, name);
	}
	return sum;
}

/* Until a scan has begun and ended from here on.  There are some in a second. */
static inline void wait_for_scans(struct __test_metadata *_metadata)
{
	long slices = counter(_metadata, "slices");

	for (int i = 0; i < 20 * MAX_TRIES; i++) {
		if (counter(_metadata, "slices") >= slices + 2)
			return;
		usleep(20000);
	}
	EXPECT_LE(slices + 2, counter(_metadata, "slices"));
}

/* The last inode references of a file may be dropped by a worker thread. */
static inline void expect_nothing_shared(struct __test_metadata *_metadata)
{
	if (control)
		return;
	for (int i = 0; i < MAX_TRIES; i++) {
		if (!counter(_metadata, "aliases") &&
		    !counter(_metadata, "pages_fake"))
			break;
		sync();
		usleep(20000);
	}
	EXPECT_EQ(0, counter(_metadata, "aliases"));
	EXPECT_EQ(0, counter(_metadata, "pages_shared"));
	EXPECT_EQ(0, counter(_metadata, "pages_sharing"));
	EXPECT_EQ(0, counter(_metadata, "pages_fake"));
}

static inline void set_strict(struct __test_metadata *_metadata, bool on)
{
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "strict", on ? "1" : "0"));
}

/* ---- the policy "manual" ---- */

static inline int manual_call(struct bpf_program *prog,
			      struct manual_args *args)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts,
		    .ctx_in = args,
		    .ctx_size_in = sizeof(*args));
	int err = bpf_prog_test_run_opts(bpf_program__fd(prog), &opts);

	return err ?: (int)opts.retval;
}

/* Load the programs, for this process and its children. */
static inline void manual_load(void)
{
	const char *env = getenv("KSM_EXT_CONTROL");

	control = env && !strcmp(env, "1");
	if (control)
		return;
	strict = number_from_env("KSM_EXT_STRICT", 0) == 1;
	if (strict && write_text(KSM_EXT_SYSFS "strict", "1"))
		ksft_exit_fail_msg("cannot turn strict mode on\n");
	manual = manual__open_and_load();
	if (!manual)
		ksft_exit_fail_msg("cannot load the policy manual: %s\n",
				   strerror(errno));
}

/* Put the policy in charge, until this process ends. */
static inline void manual_attach(void)
{
	if (control)
		return;
	manual_link = bpf_map__attach_struct_ops(manual->maps.manual);
	if (!manual_link)
		ksft_exit_fail_msg("cannot attach the policy manual: %s\n",
				   strerror(errno));
}

#define MANUAL_TEST_MAIN						\
	int main(int argc, char **argv)					\
	{								\
		manual_load();						\
		manual_attach();					\
		return test_harness_run(argc, argv);			\
	}

/*
 * Device of the file system.  On btrfs that is not st_dev, which differs from
 * one subvolume to the next, but what mountinfo says.
 */
static inline __u32 fs_dev(struct __test_metadata *_metadata, int fd)
{
	unsigned int major = 0, minor = 0;
	char path[MAX_PATH], line[1024];
	int want = -1, id;
	FILE *in;

	snprintf(path, MAX_PATH, "/proc/self/fdinfo/%d", fd);
	in = fopen(path, "r");
	ASSERT_NE(NULL, in);
	while (fgets(line, sizeof(line), in))
		sscanf(line, "mnt_id: %d", &want);
	fclose(in);

	in = fopen("/proc/self/mountinfo", "r");
	ASSERT_NE(NULL, in);
	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, "%d %*d %u:%u", &id, &major, &minor) == 3 &&
		    id == want)
			break;
	}
	fclose(in);
	ASSERT_EQ(want, id);
	/* new_encode_dev() */
	return (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
}

/* Ask for the id of @f.  Return: 0 or a negative errno. */
static inline int find_file(struct __test_metadata *_metadata,
			    const struct file *f, struct manual_args *args)
{
	struct stat st;

	ASSERT_EQ(0, fstat(f->fd, &st));
	args->ino = st.st_ino;
	args->dev = fs_dev(_metadata, f->fd);
	return manual_call(manual->progs.manual_find, args);
}

static inline __u64 file_id(struct __test_metadata *_metadata,
			    const struct file *f)
{
	struct manual_args args = {};

	ASSERT_EQ(0, find_file(_metadata, f, &args)) TH_LOG("%s", f->path);
	return args.id;
}

static inline void set_domain(struct __test_metadata *_metadata,
			      const struct file *f, __u64 domain)
{
	struct stat st;
	__u64 ino;

	ASSERT_EQ(0, fstat(f->fd, &st));
	ino = st.st_ino;
	ASSERT_EQ(0, bpf_map__update_elem(manual->maps.domains, &ino,
					  sizeof(ino), &domain, sizeof(domain),
					  BPF_ANY));
}

static inline void forget_domains(void)
{
	__u64 ino;

	if (control)
		return;
	while (!bpf_map__get_next_key(manual->maps.domains, NULL, &ino,
				      sizeof(ino)))
		bpf_map__delete_elem(manual->maps.domains, &ino, sizeof(ino),
				     0);
}

/* One call of the verb. */
static inline int try_merge(struct __test_metadata *_metadata,
			    const struct file *dst, size_t dst_index,
			    const struct file *src, size_t src_index,
			    unsigned int nr)
{
	struct manual_args args = {
		.dst = file_id(_metadata, dst),
		.dst_index = dst_index,
		.src = file_id(_metadata, src),
		.src_index = src_index,
		.nr = nr,
	};

	return manual_call(manual->progs.manual_merge, &args);
}

/*
 * Pages that just entered the page cache are referenced by some CPU's batch of
 * pages on their way to the LRU lists.  Moving a page empties all batches.
 */
static inline void drain_lru(void)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));
	void *addr = page;
	int node = 0, status;

	page[0] = 1;
	syscall(SYS_move_pages, 0, 1UL, &addr, &node, &status, 2);
}

/*
 * Merge as much of the run as can be merged, patiently.
 * Return: pages that share now, or the errno that stopped the first.
 */
static inline int merge_pages(struct __test_metadata *_metadata,
			      const struct file *dst, size_t dst_index,
			      const struct file *src, size_t src_index,
			      unsigned int nr)
{
	struct manual_args args;
	unsigned int done = 0, tries = 0;
	int ret = 0;

	if (control)
		return nr;
	args.dst = file_id(_metadata, dst);
	args.src = file_id(_metadata, src);
	while (done < nr) {
		args.dst_index = dst_index + done;
		args.src_index = src_index + done;
		args.nr = nr - done;
		if (args.nr > MANUAL_MAX_RUN)
			args.nr = MANUAL_MAX_RUN;
		ret = manual_call(manual->progs.manual_merge, &args);
		if (ret > 0) {
			done += ret;
			continue;
		}
		if (ret != -EBUSY || ++tries > MAX_TRIES)
			break;
		fsync(dst->fd);
		fsync(src->fd);
		drain_lru();
	}
	return done ?: ret;
}

static inline void __merge_all(struct __test_metadata *_metadata,
			       const struct file *dst, const struct file *src,
			       int line)
{
	int nr = nr_pages(src);

	ASSERT_EQ(nr, merge_pages(_metadata, dst, 0, src, 0, nr)) {
		TH_LOG("line %d: %s into %s: pages merged, or error", line,
		       src->path, dst->path);
	}
}

/* Merge every page of @src into the one of @dst at the same place. */
#define merge_all(dst, src) __merge_all(_metadata, dst, src, __LINE__)

#define EXPECT_SHARED(f, i, g, j)					\
	do {								\
		if (control)						\
			break;						\
		EXPECT_TRUE(same_page(_metadata, f, i, g, j))		\
			TH_LOG("page %zu of %s, page %zu of %s",	\
			       (size_t)(i), (f)->path, (size_t)(j),	\
			       (g)->path);				\
	} while (0)

#define EXPECT_APART(f, i, g, j)					\
	do {								\
		EXPECT_FALSE(same_page(_metadata, f, i, g, j))		\
			TH_LOG("page %zu of %s, page %zu of %s",	\
			       (size_t)(i), (f)->path, (size_t)(j),	\
			       (g)->path);				\
	} while (0)

/* ---- a directory for each test ---- */

/* Where all of them are. */
static inline const char *test_top(void)
{
	return getenv("KSM_EXT_DIR") ?: "/mnt/data";
}

static inline void test_begin(struct __test_metadata *_metadata, char *dir)
{
	snprintf(dir, MAX_PATH, "%s/test.XXXXXX", test_top());
	ASSERT_NE(NULL, mkdtemp(dir)) TH_LOG("%s: %s", dir, strerror(errno));
	if (control || !counter(_metadata, "aliases"))
		return;
	/* An earlier test failed: do not let this one fail with it. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "2"));
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
}

/* After all files of the test are closed: nothing of it is left. */
static inline void test_end(struct __test_metadata *_metadata, char *dir)
{
	EXPECT_EQ(0, remove_tree(dir)) TH_LOG("%s: %s", dir, strerror(errno));
	forget_domains();
	expect_nothing_shared(_metadata);
}

#endif /* KSM_EXT_TEST_H */
