/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Files whose contents the tests know, and the physical pages behind them.
 *
 * A struct file carries a model of its own contents.  A test applies each
 * change to the model too, and check_file() compares the two as seen by
 * read(2), by a new mapping and, with check_disk(), by the storage device.
 */
#ifndef FILES_H
#define FILES_H

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <linux/kernel-page-flags.h>
#include <linux/magic.h>

#include "kselftest_harness.h"

/* For tests that hang; how fast a machine is decides nothing. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 240

#define PAGE	4096UL

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC	0x58465342
#endif

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* As in <linux/mman.h> of 6.5 and later. */
struct cachestat_range {
	__u64 off;
	__u64 len;
};

struct cachestat {
	__u64 nr_cache;
	__u64 nr_dirty;
	__u64 nr_writeback;
	__u64 nr_evicted;
	__u64 nr_recently_evicted;
};

#define MAX_PATH 256

struct file {
	int fd;
	char path[MAX_PATH];
	unsigned char *want;	/* what the file must hold: the model */
	size_t size;
};

static inline size_t nr_pages(const struct file *f)
{
	return (f->size + PAGE - 1) / PAGE;
}

/*
 * Pseudo-random bytes: the same @seed gives the same bytes again.  Four of them
 * come eight times in a row, for file systems that compress.
 */
static inline void fill(void *buf, size_t len, uint64_t seed)
{
	unsigned char *p = buf;
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;

	for (size_t i = 0; i < len; i++) {
		if (i % 32 >= 4) {
			p[i] = p[i - 4];
			continue;
		}
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = x >> 24;
	}
}

static inline void *page_buffer(struct __test_metadata *_metadata, size_t len)
{
	void *buf = aligned_alloc(PAGE, len);

	ASSERT_NE(NULL, buf);
	return buf;
}

/* The model of @f learns that @len bytes at @off are now those of @buf. */
static inline void model_write(struct __test_metadata *_metadata,
			       struct file *f, size_t off, const void *buf,
			       size_t len)
{
	if (off + len > f->size) {
		f->want = realloc(f->want, off + len);
		ASSERT_NE(NULL, f->want);
		if (off > f->size)
			memset(f->want + f->size, 0, off - f->size);
		f->size = off + len;
	}
	memcpy(f->want + off, buf, len);
}

static inline void model_zero(struct file *f, size_t off, size_t len)
{
	if (off + len > f->size)
		len = off < f->size ? f->size - off : 0;
	memset(f->want + off, 0, len);
}

static inline void model_resize(struct __test_metadata *_metadata,
				struct file *f, size_t size)
{
	if (size > f->size)
		model_write(_metadata, f, size - 1, "", 1);
	f->size = size;
}

static inline void read_to_cache(struct __test_metadata *_metadata,
				 struct file *f)
{
	char buf[PAGE];

	for (size_t off = 0; off < f->size; off += PAGE) {
		ASSERT_LT(0, pread(f->fd, buf, PAGE, off));
	}
}

/* Shall files have large folios, where the file system has such? */
static inline bool want_large(void)
{
	const char *env = getenv("KSM_EXT_LARGE");

	return env && !strcmp(env, "1");
}

/*
 * Make a file of @size pseudo-random bytes, on disk and clean in the page
 * cache.  Equal seeds make twins.
 */
static inline void file_create(struct __test_metadata *_metadata,
			       struct file *f, const char *dir,
			       const char *name, size_t size, uint64_t seed)
{
	ASSERT_GT(MAX_PATH,
		  snprintf(f->path, MAX_PATH, "%s/%s", dir, name));
	f->fd = open(f->path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	ASSERT_LE(0, f->fd) TH_LOG("%s: %s", f->path, strerror(errno));
	f->size = size;
	f->want = malloc(size);
	ASSERT_NE(NULL, f->want);
	fill(f->want, size, seed);
	/* A write makes folios of its size. */
	for (size_t off = 0, n; off < size; off += n) {
		n = MIN(size - off, want_large() ? 32 * PAGE : PAGE);
		ASSERT_EQ(n, pwrite(f->fd, f->want + off, n, off));
	}
	ASSERT_EQ(0, fsync(f->fd));
	read_to_cache(_metadata, f);
}

/* Make a copy of @from, on disk and clean in the page cache. */
static inline void file_copy(struct __test_metadata *_metadata, struct file *f,
			     const char *dir, const char *name,
			     const char *from)
{
	unsigned char buf[PAGE];
	ssize_t n;
	int in;

	file_create(_metadata, f, dir, name, 0, 1);
	in = open(from, O_RDONLY);
	ASSERT_LE(0, in) TH_LOG("%s: %s", from, strerror(errno));
	while ((n = read(in, buf, PAGE)) > 0) {
		size_t off = f->size;

		model_write(_metadata, f, off, buf, n);
		ASSERT_EQ(n, pwrite(f->fd, buf, n, off));
	}
	close(in);
	ASSERT_EQ(0, fsync(f->fd));
}

static inline void file_close(struct file *f)
{
	if (f->fd > 0)
		close(f->fd);
	f->fd = -1;
	free(f->want);
	f->want = NULL;
}

static inline void *file_map(struct __test_metadata *_metadata,
			     const struct file *f, int prot, int flags)
{
	void *map = mmap(NULL, nr_pages(f) * PAGE, prot, flags, f->fd, 0);

	ASSERT_NE(MAP_FAILED, map);
	return map;
}

static inline void file_unmap(const struct file *f, void *map)
{
	munmap(map, nr_pages(f) * PAGE);
}

/* Bring in a page table entry for each page, without writing. */
static inline void touch(const void *map, size_t len)
{
	for (size_t off = 0; off < len; off += PAGE)
		(void)*((volatile const char *)map + off);
}

static inline void __check_bytes(struct __test_metadata *_metadata,
				 const struct file *f, const char *how,
				 const unsigned char *seen,
				 const unsigned char *want, size_t len,
				 size_t base, int line)
{
	size_t i = 0;

	if (!memcmp(seen, want, len))
		return;
	while (seen[i] == want[i])
		i++;
	EXPECT_TRUE(false) {
		TH_LOG("line %d: %s by %s: byte %zu is 0x%02x, not 0x%02x",
		       line, strrchr(f->path, '/') + 1, how, base + i,
		       seen[i], want[i]);
	}
}

/* A mapping of @f shows the model, and zeros from its end to the page's. */
static inline void __check_map(struct __test_metadata *_metadata,
			       const struct file *f, const char *how,
			       const unsigned char *map, int line)
{
	static const unsigned char zeros[PAGE];
	size_t tail = nr_pages(f) * PAGE - f->size;

	__check_bytes(_metadata, f, how, map, f->want, f->size, 0, line);
	__check_bytes(_metadata, f, how, map + f->size, zeros, tail, f->size,
		      line);
}

#define check_map(f, map) \
	__check_map(_metadata, f, "old mapping", map, __LINE__)

static inline void __check_read(struct __test_metadata *_metadata,
				const struct file *f, int fd, const char *how,
				int line)
{
	unsigned char *buf = page_buffer(_metadata, 16 * PAGE);
	struct stat st;
	size_t off = 0;

	EXPECT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(f->size, st.st_size) TH_LOG("line %d: %s", line, how);

	while (off < f->size) {
		ssize_t n = pread(fd, buf, 16 * PAGE, off);

		EXPECT_LT(0, n) {
			TH_LOG("line %d: %s by %s: byte %zu of %zu: %zd %s",
			       line, f->path, how, off, f->size, n,
			       n < 0 ? strerror(errno) : "");
		}
		if (n <= 0)
			break;
		__check_bytes(_metadata, f, how, buf, f->want + off, n, off,
			      line);
		off += n;
	}
	free(buf);
}

static inline void __check_file(struct __test_metadata *_metadata,
				const struct file *f, int line)
{
	__check_read(_metadata, f, f->fd, "read", line);
	if (f->size) {
		void *map = file_map(_metadata, f, PROT_READ, MAP_SHARED);

		__check_map(_metadata, f, "mmap", map, line);
		file_unmap(f, map);
	}
}

#define check_file(f) __check_file(_metadata, f, __LINE__)

static inline void __check_disk(struct __test_metadata *_metadata,
				const struct file *f, int line)
{
	char path[MAX_PATH];
	int fd;

	/* The file may have no name any more, or another one. */
	snprintf(path, MAX_PATH, "/proc/self/fd/%d", f->fd);
	ASSERT_EQ(0, fsync(f->fd));
	fd = open(path, O_RDONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	__check_read(_metadata, f, fd, "direct read", line);
	close(fd);
}

#define check_disk(f) __check_disk(_metadata, f, __LINE__)

/* What has no event to wait for is looked at again and again, for 60 s. */
#define WAIT_FOR(condition)						\
	({								\
		bool __true = false;					\
									\
		for (int __i = 0; __i < 6000 && !__true; __i++) {	\
			if (__i)					\
				usleep(10000);				\
			__true = (condition);				\
		}							\
		__true;							\
	})

/* What /proc/self/pagemap says about @addr. */
static inline uint64_t pagemap_of(const void *addr)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd >= 0) {
		off_t off = (uintptr_t)addr / PAGE * sizeof(entry);

		if (pread(fd, &entry, sizeof(entry), off) != sizeof(entry))
			entry = 0;
		close(fd);
	}
	return entry;
}

/* Physical page frame mapped at @addr, or 0. */
static inline unsigned long pfn_of(const void *addr)
{
	uint64_t entry = pagemap_of(addr);

	/* bit 63: present; bits 0-54: page frame number */
	return entry >> 63 ? entry & ((1UL << 55) - 1) : 0;
}

/* The same after a read of @addr, which a merge may unmap in between. */
static inline unsigned long pfn_read(struct __test_metadata *_metadata,
				     const void *addr)
{
	unsigned long pfn = 0;

	ASSERT_TRUE(WAIT_FOR((touch(addr, PAGE), pfn = pfn_of(addr))));
	return pfn;
}

/* Is there one physical page for page @i of @f and page @j of @g? */
static inline bool same_page(struct __test_metadata *_metadata,
			     const struct file *f, size_t i,
			     const struct file *g, size_t j)
{
	char *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, f->fd, i * PAGE);
	char *q = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, g->fd, j * PAGE);
	unsigned long pfn_p, pfn_q;

	ASSERT_NE(MAP_FAILED, p);
	ASSERT_NE(MAP_FAILED, q);
	pfn_p = pfn_read(_metadata, p);
	pfn_q = pfn_read(_metadata, q);
	munmap(p, PAGE);
	munmap(q, PAGE);
	return pfn_p == pfn_q;
}

/* What /proc/@name (kpageflags, kpagecount, kpagecgroup) says of a page. */
static inline uint64_t page_entry(struct __test_metadata *_metadata,
				  const char *name, unsigned long pfn)
{
	char path[MAX_PATH];
	uint64_t entry;
	int fd;

	snprintf(path, MAX_PATH, "/proc/%s", name);
	fd = open(path, O_RDONLY);
	ASSERT_LE(0, fd) TH_LOG("%s: %s", path, strerror(errno));
	ASSERT_EQ(sizeof(entry), pread(fd, &entry, sizeof(entry),
				       pfn * sizeof(entry)));
	close(fd);
	return entry;
}

/* Is page @i of @f part of a large folio? */
static inline bool in_large_folio(struct __test_metadata *_metadata,
				  const struct file *f, size_t i)
{
	char *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, f->fd, i * PAGE);
	uint64_t flags;

	ASSERT_NE(MAP_FAILED, p);
	touch(p, PAGE);
	flags = page_entry(_metadata, "kpageflags", pfn_of(p));
	munmap(p, PAGE);
	return flags & (1ULL << KPF_COMPOUND_HEAD | 1ULL << KPF_COMPOUND_TAIL);
}

/* How many pages of @f does mincore(2) find in the page cache? */
static inline size_t resident(struct __test_metadata *_metadata,
			      const struct file *f)
{
	size_t n = nr_pages(f), in = 0;
	unsigned char vec[n];
	void *map = file_map(_metadata, f, PROT_READ, MAP_SHARED);

	ASSERT_EQ(0, mincore(map, n * PAGE, vec));
	for (size_t i = 0; i < n; i++)
		in += vec[i] & 1;
	file_unmap(f, map);
	return in;
}

/* Drop the clean, unmapped cached pages of one file. */
static inline void drop_file(struct __test_metadata *_metadata,
			     const struct file *f)
{
	ASSERT_EQ(0, fsync(f->fd));
	ASSERT_EQ(0, posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED));
}

static inline long fs_magic(const char *path)
{
	struct statfs st;

	return statfs(path, &st) ? 0 : st.f_type;
}

static inline int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), ret = 0;
	size_t len = strlen(text);

	if (fd < 0)
		return -errno;
	if (write(fd, text, len) != (ssize_t)len)
		ret = -errno;
	close(fd);
	return ret;
}

/* First line of a small file, without its newline. */
static inline int read_text(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, len - 1);
	close(fd);
	if (n < 0)
		return -errno;
	buf[n] = 0;
	buf[strcspn(buf, "\n")] = 0;
	return 0;
}

/* A shell command. */
static inline __attribute__((format(printf, 1, 2))) int
run(const char *fmt, ...)
{
	char *cmd;
	va_list args;
	int ret;

	va_start(args, fmt);
	ret = vasprintf(&cmd, fmt, args);
	va_end(args);
	if (ret < 0)
		return ret;
	ret = system(cmd);
	if (ret)
		ksft_print_msg("failed with status 0x%x: %s\n", ret, cmd);
	free(cmd);
	return ret;
}

/*
 * Make a file system in a file below @dir, and mount it beside.  @mnt gets the
 * path, and the caller unmounts it.
 */
static inline void mount_new(struct __test_metadata *_metadata,
			     const char *dir, char *mnt, const char *mkfs,
			     const char *options)
{
	ASSERT_GT(MAX_PATH, snprintf(mnt, MAX_PATH, "%s/mnt", dir));
	ASSERT_EQ(0, mkdir(mnt, 0755));
	ASSERT_EQ(0, run("truncate -s 320M %s.img && %s %s.img && "
			 "mount -o loop %s %s.img %s", mnt, mkfs, mnt, options,
			 mnt, mnt));
}

/* What makes a file system like the one that @dir is on. */
static inline const char *mkfs_like(const char *dir)
{
	switch (fs_magic(dir)) {
	case XFS_SUPER_MAGIC:
		return "mkfs.xfs -qf";
	case BTRFS_SUPER_MAGIC:
		return "mkfs.btrfs -qf";
	default:
		return "mkfs.ext4 -qF";
	}
}

/* ---- memory cgroups ---- */

#define CGROUP "/sys/fs/cgroup"

static inline int cgroup_write(const char *dir, const char *name,
			       const char *text)
{
	char path[2 * MAX_PATH];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return write_text(path, text);
}

/* Make a group of this process's own; @dir gets its path. */
static inline void cgroup_new(struct __test_metadata *_metadata, char *dir,
			       const char *name)
{
	if (fs_magic(CGROUP) != CGROUP2_SUPER_MAGIC) {
		ASSERT_EQ(0, mount("cgroup2", CGROUP, "cgroup2", 0, NULL));
	}
	ASSERT_EQ(0, cgroup_write(CGROUP, "cgroup.subtree_control",
				  "+memory"));
	snprintf(dir, MAX_PATH, CGROUP "/%s.%d", name, getpid());
	ASSERT_EQ(0, mkdir(dir, 0755));
}

/* Hand the turn to the other process, and wait for one's own. */
static inline void tell(struct __test_metadata *_metadata, int sock)
{
	ASSERT_EQ(1, write(sock, "", 1));
}

static inline void hear(struct __test_metadata *_metadata, int sock)
{
	char byte;

	ASSERT_EQ(1, read(sock, &byte, 1));
}

static inline void reap(struct __test_metadata *_metadata, pid_t pid)
{
	int status;

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status)) {
		TH_LOG("child ended with status 0x%x", status);
	}
}

static inline int __remove_one(const char *path, const struct stat *st,
			       int type, struct FTW *ftw)
{
	return remove(path);
}

static inline int remove_tree(const char *dir)
{
	return nftw(dir, __remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

#endif /* FILES_H */
