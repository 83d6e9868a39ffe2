// SPDX-License-Identifier: GPL-2.0
/*
 * Breaking: three files A, B and C share all their pages, and each test does
 * one thing to A by which a file can change or lose pages.  Afterwards A must
 * have its new bytes everywhere (read(2), old and new mappings, disk), and B
 * and C must have their old ones, on pages they still share.
 */
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>

#include "trio.h"
#include "../../../mm/gup_test.h"	/* of the kernel tree */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#define MPOL_MF_MOVE_ALL 4

FIXTURE(brk) {
	struct trio t;
};

FIXTURE_SETUP(brk)
{
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(brk)
{
	trio_end(_metadata, &self->t);
}

/* ---- writes through shared mappings ---- */

TEST_F(brk, mmap_absent_pte)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	store_a(_metadata, t, map, HIT * PAGE + 100, t->junk, 50);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, mmap_readonly_pte)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	store_a(_metadata, t, map, HIT * PAGE + 100, t->junk, 50);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, mmap_tail_page)
{
	struct trio *t = &self->t;
	size_t off = (NPAGES - 1) * PAGE + TAIL - 10;
	unsigned char *map;

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	store_a(_metadata, t, map, off, t->junk, 10);
	check_map(&t->a, map);
	check_broken(t, NPAGES - 1, NPAGES);
	file_unmap(&t->a, map);
}

/* Mappings made and read before see what is written by another way. */
TEST_F(brk, old_mappings)
{
	struct trio *t = &self->t;
	unsigned char *map[3];

	for (int i = 0; i < 3; i++) {
		map[i] = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
				  MAP_SHARED);
		touch(map[i], SIZE);
	}
	memcpy(map[0] + HIT * PAGE, t->junk, 8);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, 8);
	check_map(&t->a, map[1]);
	check_map(&t->a, map[2]);

	write_a(_metadata, t, (HIT + 1) * PAGE, t->junk, 8);
	for (int i = 0; i < 3; i++)
		check_map(&t->a, map[i]);

	/* and a write through a mapping that was stale a moment ago */
	memcpy(map[2] + HIT * PAGE + 8, t->junk, 8);
	model_write(_metadata, &t->a, HIT * PAGE + 8, t->junk, 8);
	for (int i = 0; i < 3; i++)
		check_map(&t->a, map[i]);

	check_broken(t, HIT, HIT + 2);
	for (int i = 0; i < 3; i++)
		file_unmap(&t->a, map[i]);
}

TEST_F(brk, other_process)
{
	struct trio *t = &self->t;
	unsigned char *map;
	int sock[2];
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		unsigned char *own = file_map(_metadata, &t->a,
					      PROT_READ | PROT_WRITE,
					      MAP_SHARED);

		touch(own, SIZE);
		tell(_metadata, sock[1]);
		hear(_metadata, sock[1]);
		model_write(_metadata, &t->a, HIT * PAGE, t->junk, 9);
		model_write(_metadata, &t->a, 5 * PAGE, t->junk, PAGE);
		check_map(&t->a, own);
		memcpy(own + HIT * PAGE, t->junk + 100, 5);
		_exit(0);
	}
	hear(_metadata, sock[0]);
	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	memcpy(map + HIT * PAGE, t->junk, 9);
	ASSERT_EQ(PAGE, pwrite(t->a.fd, t->junk, PAGE, 5 * PAGE));
	tell(_metadata, sock[0]);
	reap(_metadata, pid);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, 9);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk + 100, 5);
	model_write(_metadata, &t->a, 5 * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_file(&t->a);
	file_unmap(&t->a, map);
	check_trio(t);
	check_totals(3 * NPAGES - 2);
}

/* Parent and child share a mapping across fork; the child writes. */
TEST_F(brk, fork)
{
	struct trio *t = &self->t;
	unsigned char *map;
	pid_t pid;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		memcpy(map + HIT * PAGE, t->junk, PAGE);
		_exit(0);
	}
	reap(_metadata, pid);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, mprotect)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, mprotect(map, NPAGES * PAGE, PROT_READ | PROT_WRITE));
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, madvise_dontneed)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(0, madvise(map, NPAGES * PAGE, MADV_DONTNEED));
	check_map(&t->a, map);
	check_totals(3 * NPAGES);
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

/* Throws shared pages out, though another file's mapping has them, too. */
TEST_F(brk, madvise_pageout)
{
	struct trio *t = &self->t;
	unsigned char *map, *other;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	other = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	touch(other, SIZE);
	for (int i = 0; i < MAX_TRIES && resident(_metadata, &t->a); i++) {
		touch(map, SIZE);
		drain_lru();
		ASSERT_EQ(0, madvise(map, NPAGES * PAGE, MADV_PAGEOUT));
	}
	EXPECT_EQ(0, resident(_metadata, &t->a));
	check_map(&t->b, other);
	file_unmap(&t->b, other);
	check_map(&t->a, map);
	check_file(&t->b);
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_trio(t);
	file_unmap(&t->a, map);
}

TEST_F(brk, madvise_populate_write)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(0, madvise(map + HIT * PAGE, PAGE, MADV_POPULATE_WRITE));
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, msync)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	ASSERT_EQ(0, msync(map, NPAGES * PAGE, MS_SYNC));
	file_unmap(&t->a, map);
	drop_file(_metadata, &t->a);
	check_file(&t->a);
	check_trio(t);
	EXPECT_SHARED(&t->b, HIT, &t->c, HIT);
}

/* Private mappings get their own copies and break nothing. */
TEST_F(brk, private_mapping)
{
	struct trio *t = &self->t;
	unsigned char *absent, *present, *shared;

	absent = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE);
	present = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE);
	touch(present, SIZE);
	absent[HIT * PAGE + 7] ^= 0xff;
	present[HIT * PAGE + 9] ^= 0xff;

	check_broken(t, 0, 0);
	for (size_t i = 0; i < SIZE; i++) {
		unsigned char want = t->a.want[i];

		ASSERT_EQ(want ^ (i == HIT * PAGE + 7 ? 0xff : 0), absent[i]);
		ASSERT_EQ(want ^ (i == HIT * PAGE + 9 ? 0xff : 0), present[i]);
	}

	/* A shared write shows in private pages that are not copied yet. */
	shared = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			  MAP_SHARED);
	store_a(_metadata, t, shared, HIT * PAGE, t->junk, 2 * PAGE);
	EXPECT_EQ(0, memcmp(present + (HIT + 1) * PAGE, t->junk + PAGE, PAGE));
	EXPECT_EQ(t->b.want[HIT * PAGE], present[HIT * PAGE]);
	check_broken(t, HIT, HIT + 2);
	file_unmap(&t->a, absent);
	file_unmap(&t->a, present);
	file_unmap(&t->a, shared);
}

/* A private copy made before the merge stays private after it. */
TEST_F(brk, private_copy_before_merge)
{
	struct trio *t = &self->t;
	struct file d;
	unsigned char *map;

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	map = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	touch(map, SIZE);
	memcpy(map + HIT * PAGE, t->junk, PAGE);
	merge_all(&t->b, &d);
	EXPECT_EQ(0, memcmp(map + HIT * PAGE, t->junk, PAGE));
	EXPECT_EQ(0, memcmp(map, d.want, HIT * PAGE));
	check_file(&d);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&d, i, &t->b, i);
	memcpy(map + HIT * PAGE, t->junk + PAGE, PAGE);
	check_file(&d);
	check_trio(t);
	file_unmap(&d, map);
	file_close(&d);
}

/* ---- writes by other processes' hands ---- */

TEST_F(brk, process_vm_writev)
{
	struct trio *t = &self->t;
	struct iovec from = { t->junk, PAGE }, to = { .iov_len = PAGE };
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	to.iov_base = map + HIT * PAGE;
	ASSERT_EQ(PAGE, process_vm_writev(getpid(), &from, 1, &to, 1, 0)) {
		TH_LOG("%s (CONFIG_CROSS_MEMORY_ATTACH?)", strerror(errno));
	}
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

TEST_F(brk, ptrace)
{
	struct trio *t = &self->t;
	long word = 0x1122334455667788;
	unsigned char *map;
	int status;
	pid_t pid;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(0, ptrace(PTRACE_POKEDATA, pid, map + HIT * PAGE, word));
	model_write(_metadata, &t->a, HIT * PAGE, &word, sizeof(word));
	check_map(&t->a, map);
	ASSERT_EQ(0, ptrace(PTRACE_CONT, pid, NULL, NULL));
	reap(_metadata, pid);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

/* A device writes into the page: O_DIRECT read into a mapping. */
TEST_F(brk, direct_read_into_mapping)
{
	struct trio *t = &self->t;
	struct file d;
	unsigned char *map;
	int fd;

	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 5);
	fd = open(d.path, O_RDONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(2 * PAGE, pread(fd, map + HIT * PAGE, 2 * PAGE, 0));
	model_write(_metadata, &t->a, HIT * PAGE, d.want, 2 * PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 2);
	file_unmap(&t->a, map);
	close(fd);
	file_close(&d);
}

/* A device reads from the page, and leaves it as it is. */
TEST_F(brk, direct_write_from_mapping)
{
	struct trio *t = &self->t;
	struct file d;
	unsigned char *map;
	int fd;

	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 5);
	fd = open(d.path, O_WRONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	map = file_map(_metadata, &t->a, PROT_READ, MAP_SHARED);
	ASSERT_EQ(2 * PAGE, pwrite(fd, map + HIT * PAGE, 2 * PAGE, 0));
	model_write(_metadata, &d, 0, map + HIT * PAGE, 2 * PAGE);
	check_file(&d);
	check_disk(&d);
	check_broken(t, 0, 0);
	file_unmap(&t->a, map);
	close(fd);
	file_close(&d);
}

/*
 * A long-term pin for reading is a pin of the file's page, wherever it goes:
 * whoever holds it must see later writes.
 */
static void longterm_pin(struct __test_metadata *_metadata, struct trio *t,
			 int prot, __u32 flags)
{
	struct pin_longterm_test pin = { .size = PAGE, .flags = flags };
	unsigned char seen[PAGE];
	__u64 to = (uintptr_t)seen;
	unsigned char *map;
	int fd;

	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, fd) TH_LOG("no gup_test in debugfs (CONFIG_GUP_TEST?)");
	map = file_map(_metadata, &t->a, prot, MAP_SHARED);
	touch(map, SIZE);
	pin.addr = (uintptr_t)map + HIT * PAGE;
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_START, &pin)) {
		TH_LOG("pin: %s", strerror(errno));
	}
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
	EXPECT_EQ(0, memcmp(seen, t->a.want + HIT * PAGE, PAGE));
	write_a(_metadata, t, HIT * PAGE + 50, t->junk, 100);
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
	EXPECT_EQ(0, memcmp(seen, t->a.want + HIT * PAGE, PAGE)) {
		TH_LOG("the pin does not see what was written");
	}
	check_map(&t->a, map);
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_STOP));
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
	close(fd);
}

TEST_F(brk, longterm_pin_readonly)
{
	longterm_pin(_metadata, &self->t, PROT_READ, 0);
}

TEST_F(brk, longterm_pin_writable)
{
	longterm_pin(_metadata, &self->t, PROT_READ | PROT_WRITE, 0);
}

TEST_F(brk, longterm_pin_fast)
{
	longterm_pin(_metadata, &self->t, PROT_READ,
		     PIN_LONGTERM_TEST_FLAG_USE_FAST);
}

/* ---- write(2) and its kin ---- */

TEST_F(brk, write_full_page)
{
	struct trio *t = &self->t;

	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
}

/* The rest of the page is copied, not read from disk again. */
TEST_F(brk, write_one_byte)
{
	struct trio *t = &self->t;
	long copied = control ? 0 : counter(_metadata, "break/write");

	ASSERT_EQ(1, pwrite(t->a.fd, t->junk, 1, HIT * PAGE + 123));
	EXPECT_COUNTER("break/write",
		       copied + (want_large() ? NPAGES : 1));
	model_write(_metadata, &t->a, HIT * PAGE + 123, t->junk, 1);
	check_broken(t, HIT, HIT + 1);
}

/* From within one page to within another. */
TEST_F(brk, write_across_pages)
{
	struct trio *t = &self->t;
	size_t off = HIT * PAGE + 1000, len = 2 * PAGE + 500;

	write_a(_metadata, t, off, t->junk, len);
	check_broken(t, HIT, HIT + 3);
}

TEST_F(brk, write_all)
{
	struct trio *t = &self->t;

	write_a(_metadata, t, 0, t->junk, SIZE);
	check_broken(t, 0, NPAGES);
}

TEST_F(brk, pwritev2_dsync)
{
	struct trio *t = &self->t;
	struct iovec iov[2] = { { t->junk, 300 }, { t->junk + 300, PAGE } };

	ASSERT_EQ(300 + PAGE,
		  pwritev2(t->a.fd, iov, 2, HIT * PAGE + 10, RWF_DSYNC));
	model_write(_metadata, &t->a, HIT * PAGE + 10, t->junk, 300 + PAGE);
	check_broken(t, HIT, HIT + 2);
}

TEST_F(brk, pwritev2_append)
{
	struct trio *t = &self->t;
	struct iovec iov = { t->junk, PAGE };

	SKIP_IF_LARGE();
	ASSERT_EQ(PAGE, pwritev2(t->a.fd, &iov, 1, 0, RWF_APPEND));
	model_write(_metadata, &t->a, SIZE, t->junk, PAGE);
	check_broken(t, NPAGES - 1, NPAGES);
}

/*
 * A write that must not wait may set no time of the file: only right behind
 * another, whose time is the same, does it get anywhere on xfs.
 */
static ssize_t write_nowait(struct file *f, const void *buf, size_t page,
			    size_t before)
{
	struct iovec iov = { (void *)buf, PAGE };

	if (pwrite(f->fd, f->want + before * PAGE, PAGE, before * PAGE) != PAGE)
		return -1;
	return pwritev2(f->fd, &iov, 1, page * PAGE, RWF_NOWAIT);
}

TEST_F(brk, pwritev2_nowait)
{
	struct trio *t = &self->t;
	struct iovec iov = { t->junk, PAGE };
	ssize_t n = -1;
	struct file d;

	/* What is never merged tells what the file system allows. */
	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 3);
	for (int i = 0; i < 1000 && n != PAGE; i++) {
		n = write_nowait(&d, t->junk, 0, 1);
		if (n < 0 && errno == EOPNOTSUPP)
			SKIP(return, "no buffered RWF_NOWAIT writes here");
	}
	file_close(&d);
	if (n != PAGE)
		SKIP(return, "RWF_NOWAIT writes have to wait here");

	n = pwritev2(t->a.fd, &iov, 1, HIT * PAGE, RWF_NOWAIT);
	if (n < 0) {
		/* It may refuse for now, but then it must have done nothing. */
		EXPECT_EQ(EAGAIN, errno);
		check_trio(t);
	}
	ASSERT_TRUE(n >= 0 ||
		    WAIT_FOR((n = write_nowait(&t->a, t->junk, HIT,
					       HIT + 1)) >= 0));
	EXPECT_EQ(PAGE, n);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, n);
	check_trio(t);
	EXPECT_APART(&t->a, HIT, &t->b, HIT);
	EXPECT_SHARED(&t->b, HIT, &t->c, HIT);
}

/* So small that the inode may hold the bytes, until there are more. */
TEST_F(brk, small_files)
{
	struct trio *t = &self->t;
	const size_t small = 50, big = 3000;
	struct file files[3];
	unsigned char *map;

	SKIP_IF_LARGE();
	for (int i = 0; i < 3; i++) {
		const char name[] = { 'd' + i, 0 };

		file_create(_metadata, &files[i], t->dir, name, small, 3);
		drop_file(_metadata, &files[i]);
		read_to_cache(_metadata, &files[i]);
	}
	merge_all(&files[0], &files[1]);
	merge_all(&files[0], &files[2]);
	check_totals(3 * NPAGES + 3);

	ASSERT_EQ(1, pwrite(files[0].fd, t->junk, 1, small / 2));
	model_write(_metadata, &files[0], small / 2, t->junk, 1);
	for (int i = 0; i < 3; i++)
		check_file(&files[i]);
	EXPECT_SHARED(&files[1], 0, &files[2], 0);

	map = file_map(_metadata, &files[1], PROT_READ | PROT_WRITE,
		       MAP_SHARED);
	touch(map, small);
	memcpy(map + small / 2, t->junk + 1, 5);
	model_write(_metadata, &files[1], small / 2, t->junk + 1, 5);
	check_map(&files[1], map);
	file_unmap(&files[1], map);

	ASSERT_EQ(big, pwrite(files[2].fd, t->junk, big, small));
	model_write(_metadata, &files[2], small, t->junk, big);
	for (int i = 0; i < 3; i++) {
		check_file(&files[i]);
		drop_file(_metadata, &files[i]);
		check_file(&files[i]);
		file_close(&files[i]);
	}
	check_totals(3 * NPAGES);
}

/* ---- direct I/O ---- */

TEST_F(brk, direct_write)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);

	ASSERT_LE(0, fd);
	ASSERT_EQ(2 * PAGE, pwrite(fd, t->junk, 2 * PAGE, HIT * PAGE));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, 2 * PAGE);
	check_broken(t, HIT, HIT + 2);
	close(fd);
}

TEST_F(brk, direct_write_mapped)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);
	unsigned char *map;

	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(PAGE, pwrite(fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	store_a(_metadata, t, map, HIT * PAGE, t->junk + PAGE, 30);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
	close(fd);
}

/* Every page of the file is shared: "nothing cached" would be wrong. */
TEST_F(brk, direct_write_all)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);

	ASSERT_LE(0, fd);
	ASSERT_EQ(NPAGES * PAGE, pwrite(fd, t->junk, NPAGES * PAGE, 0));
	model_write(_metadata, &t->a, 0, t->junk, NPAGES * PAGE);
	check_broken(t, 0, NPAGES);
	close(fd);
}

/* Who writes a part of a page by direct I/O takes all of it out of memory. */
TEST_F(brk, direct_write_sector)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);
	unsigned char *map;

	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(512, pwrite(fd, t->junk, 512, HIT * PAGE + 1024));
	model_write(_metadata, &t->a, HIT * PAGE + 1024, t->junk, 512);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
	close(fd);
}

/* Over the end, which lies within a sector, and then beyond it. */
TEST_F(brk, direct_write_tail)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);
	size_t end = (SIZE + 511) & ~511UL;
	unsigned char *map;

	SKIP_IF_LARGE();
	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	ASSERT_EQ(1024, pwrite(fd, t->junk, 1024, end - 1024));
	model_write(_metadata, &t->a, end - 1024, t->junk, 1024);
	check_map(&t->a, map);
	check_broken(t, NPAGES - 1, NPAGES);
	ASSERT_EQ(512, pwrite(fd, t->junk, 512, end + 1024));
	model_write(_metadata, &t->a, end + 1024, t->junk, 512);
	check_map(&t->a, map);
	check_broken(t, NPAGES - 1, NPAGES);
	file_unmap(&t->a, map);
	close(fd);
}

/* Shared pages are cached pages, which such a write refuses to wait for. */
TEST_F(brk, direct_write_nowait)
{
	struct trio *t = &self->t;
	struct iovec iov = { t->junk, PAGE };
	int fd = open(t->a.path, O_RDWR | O_DIRECT);

	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, pwritev2(fd, &iov, 1, HIT * PAGE, RWF_NOWAIT));
	if (errno == EOPNOTSUPP)
		SKIP(goto out, "direct writes are buffered here");
	EXPECT_EQ(EAGAIN, errno);
	check_broken(t, 0, 0);
out:
	close(fd);
}

TEST_F(brk, direct_read)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);
	unsigned char *buf = page_buffer(_metadata, PAGE);

	ASSERT_LE(0, fd);
	ASSERT_EQ(PAGE, pread(fd, buf, PAGE, HIT * PAGE));
	EXPECT_EQ(0, memcmp(buf, t->a.want + HIT * PAGE, PAGE));
	check_broken(t, 0, 0);
	close(fd);
	free(buf);
}

/* ---- data from other files ---- */

TEST_F(brk, copy_file_range)
{
	struct trio *t = &self->t;
	off_t from = PAGE, to = HIT * PAGE;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", 4 * PAGE, 5);
	ASSERT_EQ(PAGE, copy_file_range(d.fd, &from, t->a.fd, &to, PAGE, 0));
	model_write(_metadata, &t->a, HIT * PAGE, d.want + PAGE, PAGE);
	check_broken(t, HIT, HIT + 1);

	/* Out of a shared page, too, and not at a block's boundary. */
	from = 5 * PAGE + 5;
	to = 77;
	ASSERT_EQ(100, copy_file_range(t->b.fd, &from, d.fd, &to, 100, 0));
	model_write(_metadata, &d, 77, t->b.want + 5 * PAGE + 5, 100);
	check_file(&d);
	check_disk(&d);
	check_broken(t, HIT, HIT + 1);
	file_close(&d);
}

TEST_F(brk, sendfile)
{
	struct trio *t = &self->t;
	off_t from = 10;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", 4 * PAGE, 5);
	ASSERT_EQ(HIT * PAGE + 50, lseek(t->a.fd, HIT * PAGE + 50, SEEK_SET));
	ASSERT_EQ(PAGE, sendfile(t->a.fd, d.fd, &from, PAGE));
	model_write(_metadata, &t->a, HIT * PAGE + 50, d.want + 10, PAGE);
	check_broken(t, HIT, HIT + 2);
	file_close(&d);
}

TEST_F(brk, splice)
{
	struct trio *t = &self->t;
	off_t to = HIT * PAGE;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, write(pipes[1], t->junk, PAGE));
	ASSERT_EQ(PAGE, splice(pipes[0], NULL, t->a.fd, &to, PAGE,
			       SPLICE_F_MOVE));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
	close(pipes[0]);
	close(pipes[1]);
}

/* Shared pages of B move through a pipe into A. */
TEST_F(brk, splice_from_shared)
{
	struct trio *t = &self->t;
	off_t from = 3 * PAGE, to = HIT * PAGE;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(t->b.fd, &from, pipes[1], NULL, PAGE,
			       SPLICE_F_MOVE));
	ASSERT_EQ(PAGE, splice(pipes[0], NULL, t->a.fd, &to, PAGE,
			       SPLICE_F_MOVE));
	model_write(_metadata, &t->a, HIT * PAGE, t->b.want + 3 * PAGE, PAGE);
	check_broken(t, HIT, HIT + 1);
	close(pipes[0]);
	close(pipes[1]);
}

/* The bytes of a pipe are copied to mapped memory of A. */
TEST_F(brk, vmsplice_into_mapping)
{
	struct trio *t = &self->t;
	struct iovec iov = { .iov_len = PAGE };
	unsigned char *map;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, write(pipes[1], t->junk, PAGE));
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	iov.iov_base = map + HIT * PAGE;
	ASSERT_EQ(PAGE, vmsplice(pipes[0], &iov, 1, 0));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
	close(pipes[0]);
	close(pipes[1]);
}

/* Mapped memory of B, which is A's too, goes through a pipe into A. */
TEST_F(brk, vmsplice_from_mapping)
{
	struct trio *t = &self->t;
	struct iovec iov = { .iov_len = PAGE };
	off_t to = HIT * PAGE;
	unsigned char *map;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	map = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	iov.iov_base = map + 3 * PAGE;
	ASSERT_EQ(PAGE, vmsplice(pipes[1], &iov, 1, SPLICE_F_GIFT));
	ASSERT_EQ(PAGE, splice(pipes[0], NULL, t->a.fd, &to, PAGE,
			       SPLICE_F_MOVE));
	model_write(_metadata, &t->a, HIT * PAGE, t->b.want + 3 * PAGE, PAGE);
	check_map(&t->b, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->b, map);
	close(pipes[0]);
	close(pipes[1]);
}

TEST_F(brk, clone_file)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", SIZE, 5);
	map = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	if (ioctl(t->a.fd, FICLONE, d.fd)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		SKIP(goto out, "this file system cannot clone files");
	}
	model_write(_metadata, &t->a, 0, d.want, SIZE);
	check_map(&t->a, map);
	check_broken(t, 0, NPAGES);
out:
	file_unmap(&t->a, map);
	file_close(&d);
}

TEST_F(brk, clone_range)
{
	struct trio *t = &self->t;
	struct file_clone_range range = {
		.src_offset = PAGE,
		.src_length = 4 * PAGE,
		.dest_offset = HIT * PAGE,
	};
	unsigned char *map;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", 6 * PAGE, 5);
	map = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	range.src_fd = d.fd;
	if (ioctl(t->a.fd, FICLONERANGE, &range)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		SKIP(goto out, "this file system cannot clone ranges");
	}
	model_write(_metadata, &t->a, HIT * PAGE, d.want + PAGE, 4 * PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 4);
out:
	file_unmap(&t->a, map);
	file_close(&d);
}

/* Twins that share blocks on disk as well: a write has to part both. */
TEST_F(brk, clone_of_shared)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d;

	SKIP_IF_LARGE();
	file_create(_metadata, &d, t->dir, "d", 0, 1);
	if (ioctl(d.fd, FICLONE, t->a.fd)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		SKIP(goto out, "this file system cannot clone files");
	}
	model_write(_metadata, &d, 0, t->a.want, SIZE);
	read_to_cache(_metadata, &d);
	merge_all(&t->b, &d);
	check_totals(4 * NPAGES);
	map = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	memcpy(map + HIT * PAGE, t->junk, 100);
	model_write(_metadata, &d, HIT * PAGE, t->junk, 100);
	write_a(_metadata, t, 4 * PAGE, t->junk, 100);
	check_map(&d, map);
	check_file(&d);
	check_disk(&d);
	check_trio(t);
	check_totals(4 * NPAGES - 2);
	file_unmap(&d, map);
out:
	file_close(&d);
}

TEST_F(brk, dedupe_range)
{
	struct trio *t = &self->t;
	struct {
		struct file_dedupe_range range;
		struct file_dedupe_range_info info;
	} arg = {
		.range.src_offset = HIT * PAGE,
		.range.src_length = 4 * PAGE,
		.range.dest_count = 1,
		.info.dest_fd = t->a.fd,
		.info.dest_offset = HIT * PAGE,
	};
	struct file d;

	if (ioctl(t->b.fd, FIDEDUPERANGE, &arg)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		SKIP(return, "this file system cannot deduplicate ranges");
	}
	if (arg.info.status == -EOPNOTSUPP)
		SKIP(return, "this file system cannot deduplicate ranges");
	EXPECT_EQ(FILE_DEDUPE_RANGE_SAME, arg.info.status);
	EXPECT_EQ(4 * PAGE, arg.info.bytes_deduped);
	/* For the comparison B takes pages of its own. */
	for (size_t i = HIT; i < HIT + 4; i++) {
		EXPECT_APART(&t->a, i, &t->b, i);
		EXPECT_APART(&t->a, i, &t->c, i);
	}
	check_totals(3 * NPAGES - 8);
	check_trio(t);

	file_create(_metadata, &d, t->dir, "d", SIZE, 5);
	arg.info.status = 0;
	ASSERT_EQ(0, ioctl(d.fd, FIDEDUPERANGE, &arg));
	EXPECT_EQ(FILE_DEDUPE_RANGE_DIFFERS, arg.info.status);
	check_trio(t);
	file_close(&d);
	/* Pages that B has shared with A on disk as well are written to. */
	write_a(_metadata, t, HIT * PAGE, t->junk, 2 * PAGE);
	check_trio(t);
}

/* ---- truncate ---- */

static void resize(struct __test_metadata *_metadata, struct file *f,
		   size_t size)
{
	ASSERT_EQ(0, ftruncate(f->fd, size));
	model_resize(_metadata, f, size);
}

TEST_F(brk, truncate_down)
{
	struct trio *t = &self->t;

	resize(_metadata, &t->a, 3 * PAGE);
	check_broken(t, 3, NPAGES);
	resize(_metadata, &t->a, SIZE);
	check_broken(t, 3, NPAGES);
}

/* The page that is cut must be broken too: its end must become zeros. */
TEST_F(brk, truncate_down_unaligned)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	resize(_metadata, &t->a, 3 * PAGE + 500);
	check_map(&t->a, map);
	check_broken(t, 3, NPAGES);
	munmap(map, NPAGES * PAGE);
	resize(_metadata, &t->a, SIZE);
	check_broken(t, 3, NPAGES);
}

/* Up from within a shared page that ends in zeros already. */
TEST_F(brk, truncate_up)
{
	struct trio *t = &self->t;

	SKIP_IF_LARGE();
	resize(_metadata, &t->a, SIZE + 2 * PAGE);
	check_file(&t->a);
	write_a(_metadata, t, SIZE + 10, t->junk, 20);
	check_broken(t, NPAGES - 1, NPAGES);
}

TEST_F(brk, truncate_to_nothing)
{
	struct trio *t = &self->t;
	int fd;

	resize(_metadata, &t->a, 0);
	check_broken(t, 0, NPAGES);
	fd = open(t->c.path, O_RDWR | O_TRUNC);
	ASSERT_LE(0, fd);
	close(fd);
	model_resize(_metadata, &t->c, 0);
	check_trio(t);
}

/* ---- fallocate ---- */

/* Return: false when this file system has no such thing. */
static bool falloc(struct __test_metadata *_metadata, struct file *f, int mode,
		   off_t off, off_t len)
{
	if (!fallocate(f->fd, mode, off, len))
		return true;
	ASSERT_EQ(EOPNOTSUPP, errno);
	return false;
}

static void punch(struct __test_metadata *_metadata, struct trio *t, int mode,
		  size_t off, size_t len)
{
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (!falloc(_metadata, &t->a, mode | FALLOC_FL_KEEP_SIZE, off, len))
		SKIP(goto out, "this file system cannot punch or zero");
	model_zero(&t->a, off, len);
	check_map(&t->a, map);
	check_broken(t, off / PAGE, (off + len + PAGE - 1) / PAGE);
out:
	munmap(map, NPAGES * PAGE);
}

/* Truncation drops the first and the last page by other means: two in between */
TEST_F(brk, punch_hole)
{
	punch(_metadata, &self->t, FALLOC_FL_PUNCH_HOLE, HIT * PAGE, 4 * PAGE);
}

TEST_F(brk, punch_hole_unaligned)
{
	punch(_metadata, &self->t, FALLOC_FL_PUNCH_HOLE, HIT * PAGE + 1500,
	      2 * PAGE);
}

TEST_F(brk, punch_hole_within_page)
{
	punch(_metadata, &self->t, FALLOC_FL_PUNCH_HOLE, HIT * PAGE + 1500,
	      1000);
}

TEST_F(brk, zero_range)
{
	punch(_metadata, &self->t, FALLOC_FL_ZERO_RANGE, HIT * PAGE, 4 * PAGE);
}

TEST_F(brk, zero_range_unaligned)
{
	punch(_metadata, &self->t, FALLOC_FL_ZERO_RANGE, HIT * PAGE + 1500,
	      2 * PAGE);
}

/* Extents move from here on; xfs takes the block in front of them along. */
static size_t first_moved(const struct trio *t)
{
	return fs_magic(t->dir) == XFS_SUPER_MAGIC ? HIT - 1 : HIT;
}

TEST_F(brk, collapse_range)
{
	struct trio *t = &self->t;
	size_t to = HIT * PAGE, from = (HIT + 2) * PAGE;

	if (!falloc(_metadata, &t->a, FALLOC_FL_COLLAPSE_RANGE, to, from - to))
		SKIP(return, "this file system cannot collapse ranges");
	memmove(t->a.want + to, t->a.want + from, SIZE - from);
	t->a.size = SIZE - (from - to);
	check_broken(t, first_moved(t), NPAGES);
}

TEST_F(brk, insert_range)
{
	struct trio *t = &self->t;
	size_t at = HIT * PAGE, len = 2 * PAGE;

	if (!falloc(_metadata, &t->a, FALLOC_FL_INSERT_RANGE, at, len))
		SKIP(return, "this file system cannot insert ranges");
	model_resize(_metadata, &t->a, SIZE + len);
	memmove(t->a.want + at + len, t->a.want + at, SIZE - at);
	memset(t->a.want + at, 0, len);
	check_broken(t, first_moved(t), NPAGES);
}

/* ---- files that go away ---- */

TEST_F(brk, unlink)
{
	struct trio *t = &self->t;

	ASSERT_EQ(0, unlink(t->a.path));
	check_broken(t, 0, 0);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
	file_close(&t->a);
	sync();
	check_file(&t->b);
	check_file(&t->c);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&t->b, i, &t->c, i);
	check_totals(2 * NPAGES);
	file_create(_metadata, &t->a, t->dir, "a", SIZE, 7);
	check_trio(t);
}

TEST_F(brk, rename_over)
{
	struct trio *t = &self->t;

	file_close(&t->b);
	ASSERT_EQ(0, rename(t->a.path, t->b.path));
	sync();
	check_file(&t->a);
	check_file(&t->c);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&t->a, i, &t->c, i);
	check_totals(2 * NPAGES);
	check_disk(&t->a);
	file_create(_metadata, &t->b, t->dir, "a", SIZE, 7);
	check_trio(t);
}

/* A is on a file system of its own, which is unmounted and mounted again. */
TEST_F(brk, umount)
{
	struct trio *t = &self->t;
	char mnt[MAX_PATH];
	struct file d;

	mount_new(_metadata, t->dir, mnt, mkfs_like(t->dir), "");
	file_create(_metadata, &d, mnt, "d", SIZE, 1);
	merge_all(&t->b, &d);
	check_totals(4 * NPAGES);
	EXPECT_SHARED(&d, HIT, &t->c, HIT);
	close(d.fd);
	ASSERT_EQ(0, umount(mnt)) TH_LOG("%s", strerror(errno));
	check_broken(t, 0, 0);

	ASSERT_EQ(0, run("mount -o loop %s.img %s", mnt, mnt));
	d.fd = open(d.path, O_RDWR);
	ASSERT_LE(0, d.fd);
	check_file(&d);
	EXPECT_APART(&d, HIT, &t->b, HIT);
	file_close(&d);
	ASSERT_EQ(0, umount(mnt));
	check_broken(t, 0, 0);
}

/* ---- pages that go away ---- */

TEST_F(brk, fadvise_dontneed)
{
	struct trio *t = &self->t;

	drop_file(_metadata, &t->a);
	EXPECT_EQ(0, resident(_metadata, &t->a));
	check_broken(t, 0, NPAGES);
}

TEST_F(brk, drop_caches)
{
	struct trio *t = &self->t;

	SKIP_IF_LARGE();
	/* Read again, pages must not become large folios. */
	ASSERT_EQ(0, posix_fadvise(t->a.fd, 0, 0, POSIX_FADV_RANDOM));
	ASSERT_EQ(0, posix_fadvise(t->b.fd, 0, 0, POSIX_FADV_RANDOM));
	ASSERT_EQ(0, posix_fadvise(t->c.fd, 0, 0, POSIX_FADV_RANDOM));
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "3"));
	EXPECT_EQ(0, resident(_metadata, &t->a));
	EXPECT_EQ(0, resident(_metadata, &t->b));
	check_totals(0);
	check_trio(t);
	merge_all(&t->b, &t->a);
	merge_all(&t->b, &t->c);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
}

/* ---- pages that move ---- */

static void write_after_move(struct __test_metadata *_metadata,
			     struct trio *t, unsigned char *map)
{
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	write_a(_metadata, t, (HIT + 1) * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 2);
}

/*
 * Memory is compacted into blocks that are used in part: make a lot of these, of
 * which every second piece is free, the @first or the last of them most recently.
 */
static void *use_blocks_in_part(struct __test_metadata *_metadata, size_t size,
				bool first)
{
	const size_t piece = want_large() ? 2 * SIZE : PAGE;
	char *blocks = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, blocks);
	ASSERT_EQ(0, madvise(blocks, size, MADV_NOHUGEPAGE));
	for (size_t i = 0; i < size; i += PAGE)
		blocks[i] = 1;
	for (size_t i = 0; i + 2 * piece <= size; i += 2 * piece) {
		char *at = blocks + (first ? size - i - 2 * piece : i);

		ASSERT_EQ(0, madvise(at, piece, MADV_DONTNEED));
	}
	return blocks;
}

/* Pages move from the lower to the higher blocks: those of either may be that. */
TEST_F_TIMEOUT(brk, compact_memory, 240)
{
	struct trio *t = &self->t;
	const size_t size = 256UL << 20;
	unsigned long was[NPAGES];
	unsigned char *map;
	int moved = 0;

	for (int tries = 0;; tries++) {
		void *blocks = use_blocks_in_part(_metadata, size, tries % 2);

		/* Anew, where there is room since a moment ago */
		trio_end(_metadata, t);
		trio_begin(_metadata, t);
		map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
		for (size_t i = 0; i < NPAGES; i++)
			was[i] = pfn_of(map + i * PAGE);
		ASSERT_EQ(0, write_text("/proc/sys/vm/compact_memory", "1"));
		touch(map, SIZE);
		for (size_t i = 0; i < NPAGES; i++)
			moved += was[i] != pfn_of(map + i * PAGE);
		munmap(blocks, size);
		if (moved || tries == MAX_TRIES)
			break;
		file_unmap(&t->a, map);
	}
	if (!want_large()) {
		EXPECT_LT(0, moved);
	}
	check_map(&t->a, map);
	check_broken(t, 0, 0);
	write_after_move(_metadata, t, map);
	file_unmap(&t->a, map);
}

/* Soft offlining moves the contents of a page to another one. */
TEST_F(brk, soft_offline)
{
	struct trio *t = &self->t;
	unsigned char *map, *other;
	unsigned long pfn;

	SKIP_IF_LARGE();
	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	other = file_map(_metadata, &t->b, PROT_READ, MAP_PRIVATE);
	touch(map, SIZE);
	touch(other, SIZE);
	for (size_t i = HIT; i < HIT + 3; i++) {
		pfn = pfn_of(other + i * PAGE);
		ASSERT_EQ(0, madvise(other + i * PAGE, PAGE,
				     MADV_SOFT_OFFLINE)) {
			TH_LOG("%s (CONFIG_MEMORY_FAILURE?)", strerror(errno));
		}
		touch(other, SIZE);
		EXPECT_NE(pfn, pfn_of(other + i * PAGE));
		check_map(&t->a, map);
		check_map(&t->b, other);
	}
	check_broken(t, 0, 0);
	write_after_move(_metadata, t, map);
	check_map(&t->b, other);
	file_unmap(&t->a, map);
	file_unmap(&t->b, other);
}

TEST_F(brk, move_pages)
{
	struct trio *t = &self->t;
	int status[NPAGES], nodes[NPAGES];
	void *addr[NPAGES];
	unsigned char *map;

	SKIP_IF_LARGE();
	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "this machine has one node only");

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (int to = 1; to >= 0; to--) {
		touch(map, SIZE);
		for (size_t i = 0; i < NPAGES; i++) {
			addr[i] = map + i * PAGE;
			nodes[i] = to;
		}
		ASSERT_EQ(0, syscall(SYS_move_pages, 0, (unsigned long)NPAGES,
				     addr, nodes, status, MPOL_MF_MOVE_ALL));
		for (size_t i = 0; i < NPAGES; i++) {
			EXPECT_EQ(to, status[i]) TH_LOG("page %zu", i);
		}
		check_map(&t->a, map);
		check_broken(t, 0, 0);
	}
	write_after_move(_metadata, t, map);
	file_unmap(&t->a, map);
}

/* A broken memory cell under a shared clean page: all read it anew. */
TEST_F(brk, memory_failure)
{
	struct trio *t = &self->t;
	unsigned char *map, *other;

	SKIP_IF_LARGE();
	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	other = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	touch(other, SIZE);
	ASSERT_EQ(0, madvise(map + HIT * PAGE, PAGE, MADV_HWPOISON)) {
		TH_LOG("%s (CONFIG_MEMORY_FAILURE?)", strerror(errno));
	}
	check_map(&t->a, map);
	check_map(&t->b, other);
	check_trio(t);
	check_totals(3 * NPAGES - 3);
	file_unmap(&t->a, map);
	file_unmap(&t->b, other);
}

/* khugepaged's work, on demand: only for mappings of 2 MiB and more. */
TEST_F(brk, madvise_collapse)
{
	struct trio *t = &self->t;
	const size_t huge = 512 * PAGE;
	unsigned char *area, *map;
	struct file d, e;
	int fd;

	file_create(_metadata, &d, t->dir, "d", huge, 3);
	file_create(_metadata, &e, t->dir, "e", huge, 3);
	merge_all(&d, &e);
	close(e.fd);
	fd = open(e.path, O_RDONLY);
	ASSERT_LE(0, fd);
	e.fd = fd;
	area = mmap(NULL, 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	map = (unsigned char *)(((uintptr_t)area + huge - 1) & ~(huge - 1));
	ASSERT_EQ(map, mmap(map, huge, PROT_READ | PROT_EXEC,
			    MAP_PRIVATE | MAP_FIXED, fd, 0));
	touch(map, huge);
	/* Whether it collapses is a matter of the file system. */
	madvise(map, huge, MADV_COLLAPSE);
	EXPECT_SHARED(&d, HIT, &e, HIT);
	check_map(&e, map);
	check_file(&e);
	check_file(&d);
	ASSERT_EQ(PAGE, pwrite(d.fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &d, HIT * PAGE, t->junk, PAGE);
	check_file(&d);
	check_file(&e);
	check_map(&e, map);
	munmap(area, 2 * huge);
	file_close(&d);
	file_close(&e);
	check_trio(t);
}

/* ---- swap ---- */

TEST_F(brk, swapon)
{
	struct trio *t = &self->t;
	const size_t size = 64 * PAGE;
	unsigned char *zeros = calloc(1, size);
	unsigned char *anon;
	struct file d, e;

	file_create(_metadata, &d, t->dir, "d", 0, 1);
	file_create(_metadata, &e, t->dir, "e", 0, 1);
	if (fs_magic(t->dir) == BTRFS_SUPER_MAGIC) {
		int flags = FS_NOCOW_FL;

		ASSERT_EQ(0, ioctl(d.fd, FS_IOC_SETFLAGS, &flags));
	}
	ASSERT_EQ(size, pwrite(d.fd, zeros, size, 0));
	ASSERT_EQ(0, fsync(d.fd));
	ASSERT_EQ(0, run("chmod 600 %s && mkswap -q %s", d.path, d.path));
	/* The file and its twin, as mkswap left it. */
	model_resize(_metadata, &d, size);
	ASSERT_EQ(size, pread(d.fd, d.want, size, 0));
	model_write(_metadata, &e, 0, d.want, size);
	ASSERT_EQ(size, pwrite(e.fd, e.want, size, 0));
	ASSERT_EQ(0, fsync(d.fd));
	ASSERT_EQ(0, fsync(e.fd));
	merge_all(&e, &d);

	ASSERT_EQ(0, swapon(d.path, 0)) TH_LOG("%s", strerror(errno));
	check_file(&e);
	if (!control) {
		int ret = try_merge(_metadata, &e, 1, &d, 1, 1);

		EXPECT_TRUE(ret == -EOPNOTSUPP || ret == -ENOENT) {
			TH_LOG("merging a swap file: %d", ret);
		}
	}
	/* Pages go out to the file and come back, past its page cache. */
	anon = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, anon);
	fill(anon, size / 2, 77);
	/* Bit 62 of pagemap: it is in swap. */
	ASSERT_TRUE(WAIT_FOR(!madvise(anon, size / 2, MADV_PAGEOUT) &&
			     pagemap_of(anon) >> 62 & 1));
	check_file(&e);
	touch(anon, size / 2);
	ASSERT_EQ(0, swapoff(d.path));
	check_file(&e);
	check_disk(&e);
	check_trio(t);
	munmap(anon, size);
	free(zeros);
	file_close(&d);
	file_close(&e);
}

/* ---- futexes ---- */

static int futex(unsigned int *word, int op, unsigned int value,
		 const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

/*
 * A futex in a mapped file is named by file and offset.  Who waits in A is
 * woken by who wakes in A, and not by who wakes in B, on the same memory.
 */
TEST_F(brk, futex_of_other_file)
{
	const struct timespec long_enough = { .tv_sec = 20 };
	struct trio *t = &self->t;
	unsigned int *in_a, *in_b;
	/* If they could be written to, the kernel would break them first. */
	in_a = file_map(_metadata, &t->a, PROT_READ, MAP_SHARED);
	in_b = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	touch(in_a, SIZE);
	touch(in_b, SIZE);
	in_a += HIT * PAGE / sizeof(*in_a);
	in_b += HIT * PAGE / sizeof(*in_b);
	/* A child that begins to wait between the two wakes shows nothing. */
	for (int i = 0; i < 20; i++) {
		int woken = 0;
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			EXPECT_EQ(0, futex(in_a, FUTEX_WAIT, *in_a,
					   &long_enough)) {
				TH_LOG("not woken: %s", strerror(errno));
			}
			_exit(0);
		}
		/* Nothing tells that the child waits but this itself. */
		while (!woken && waitpid(pid, NULL, WNOHANG) == 0) {
			EXPECT_EQ(0, futex(in_b, FUTEX_WAKE, 1, NULL));
			woken = futex(in_a, FUTEX_WAKE, 1, NULL);
			sched_yield();
		}
		EXPECT_EQ(1, woken);
		reap(_metadata, pid);
	}
	check_trio(t);
	file_unmap(&t->a, in_a - HIT * PAGE / sizeof(*in_a));
	file_unmap(&t->b, in_b - HIT * PAGE / sizeof(*in_b));
}

/* ---- no memory for the copy ---- */

#define FAIL_DIR "/sys/kernel/debug/fail_page_alloc/"

/* Let the next @times page allocations of this task fail; 0 ends it. */
static void fail_allocations(struct __test_metadata *_metadata,
			     const char *times)
{
	const char *on = strcmp(times, "0") ? "1" : "0";

	ASSERT_EQ(0, write_text(FAIL_DIR "task-filter", "1"));
	ASSERT_EQ(0, write_text(FAIL_DIR "min-order", "0"));
	ASSERT_EQ(0, write_text(FAIL_DIR "ignore-gfp-wait", "0"));
	ASSERT_EQ(0, write_text(FAIL_DIR "ignore-gfp-highmem", "0"));
	ASSERT_EQ(0, write_text(FAIL_DIR "verbose", "0"));
	ASSERT_EQ(0, write_text(FAIL_DIR "interval", "1"));
	ASSERT_EQ(0, write_text(FAIL_DIR "times", times));
	ASSERT_EQ(0, write_text(FAIL_DIR "probability", *on == '1' ? "100" :
				"0"));
	ASSERT_EQ(0, write_text("/proc/thread-self/make-it-fail", on));
}

TEST_F(brk, no_memory_write)
{
	struct trio *t = &self->t;
	ssize_t n;
	int err;

	SKIP_IF_LARGE();
	if (access(FAIL_DIR, F_OK))
		SKIP(return, "this kernel cannot fail allocations on demand");
	fail_allocations(_metadata, "-1");
	n = pwrite(t->a.fd, t->junk, PAGE, HIT * PAGE);
	err = errno;
	fail_allocations(_metadata, "0");
	EXPECT_EQ(-1, n);
	EXPECT_EQ(ENOMEM, err);
	check_broken(t, 0, 0);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
}

/* A fault that gets no memory is tried again. */
TEST_F(brk, no_memory_fault)
{
	struct trio *t = &self->t;
	unsigned char *map;
	char left[16];

	if (access(FAIL_DIR, F_OK))
		SKIP(return, "this kernel cannot fail allocations on demand");
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	fail_allocations(_metadata, "3");
	memcpy(map + HIT * PAGE, t->junk, PAGE);
	ASSERT_EQ(0, read_text(FAIL_DIR "times", left, sizeof(left)));
	EXPECT_EQ(0, atoi(left));
	fail_allocations(_metadata, "0");
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

/* ---- the end of sharing ---- */

/* All aliases of one page break, one after the other. */
TEST_F(brk, last_alias)
{
	struct trio *t = &self->t;
	struct file *files[] = { &t->a, &t->b, &t->c };

	SKIP_IF_LARGE();
	for (int i = 0; i < 3; i++) {
		struct file *f = files[i];
		unsigned char *map;

		map = file_map(_metadata, f, PROT_READ | PROT_WRITE,
			       MAP_SHARED);
		touch(map, SIZE);
		memcpy(map + HIT * PAGE + i, t->junk + i, 100);
		model_write(_metadata, f, HIT * PAGE + i, t->junk + i, 100);
		check_map(f, map);
		file_unmap(f, map);
		check_trio(t);
	}
	check_totals(3 * (NPAGES - 1));
	EXPECT_COUNTER("pages_shared", NPAGES - 1);
	EXPECT_APART(&t->a, HIT, &t->b, HIT);
	EXPECT_APART(&t->b, HIT, &t->c, HIT);
	for (size_t i = 0; i < NPAGES; i++) {
		if (i != HIT)
			EXPECT_SHARED(&t->a, i, &t->c, i);
	}
}

/* What was broken is merged again once the bytes are equal again. */
TEST_F(brk, merge_again)
{
	struct trio *t = &self->t;

	SKIP_IF_LARGE();
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_broken(t, HIT, HIT + 1);
	write_a(_metadata, t, HIT * PAGE, t->b.want + HIT * PAGE, PAGE);
	ASSERT_EQ(0, fsync(t->a.fd));
	merge_all(&t->b, &t->a);
	check_broken(t, 0, 0);
}

TEST_F(brk, unmerge)
{
	struct trio *t = &self->t;
	struct manual_args args = { .dst_index = HIT, .nr = 3 };

	SKIP_IF_LARGE();
	SKIP_IF_CONTROL();
	args.dst = file_id(_metadata, &t->a);
	EXPECT_EQ(3, manual_call(manual->progs.manual_unmerge, &args));
	EXPECT_EQ(0, manual_call(manual->progs.manual_unmerge, &args));
	EXPECT_EQ(NPAGES, resident(_metadata, &t->a));
	check_broken(t, HIT, HIT + 3);
}

/* ---- reclaim in a memory cgroup ---- */

FIXTURE(cgroup) {
	struct trio t;
	char dir[MAX_PATH];
};

FIXTURE_SETUP(cgroup)
{
	cgroup_new(_metadata, self->dir, "ksm_ext");
	ASSERT_EQ(0, cgroup_write(self->dir, "cgroup.procs", "0"));
	/* Its pages are charged to this group: they are made in it. */
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(cgroup)
{
	trio_end(_metadata, &self->t);
	EXPECT_EQ(0, cgroup_write(CGROUP, "cgroup.procs", "0"));
	EXPECT_EQ(0, rmdir(self->dir));
}

/* Reclaim until no page of A and B is in memory. */
static void reclaim_all(struct __test_metadata *_metadata, const char *dir,
			struct trio *t)
{
	for (int i = 0; i < MAX_TRIES && (resident(_metadata, &t->a) ||
					  resident(_metadata, &t->b)); i++)
		cgroup_write(dir, "memory.reclaim", "4M");
	EXPECT_EQ(0, resident(_metadata, &t->b));
	EXPECT_EQ(0, resident(_metadata, &t->a));
	check_totals(0);
}

TEST_F(cgroup, reclaim)
{
	struct trio *t = &self->t;

	reclaim_all(_metadata, self->dir, t);
	check_trio(t);
}

/* Reclaim finds and removes the page table entries of all aliases. */
TEST_F(cgroup, reclaim_mapped)
{
	struct trio *t = &self->t;
	unsigned char *map[3];

	map[0] = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	map[2] = file_map(_metadata, &t->c, PROT_READ, MAP_PRIVATE);
	for (int i = 0; i < 3; i++)
		touch(map[i], SIZE);
	reclaim_all(_metadata, self->dir, t);
	check_map(&t->a, map[0]);
	check_map(&t->b, map[1]);
	check_map(&t->c, map[2]);
	memcpy(map[0] + HIT * PAGE, t->junk, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map[0]);
	check_trio(t);
	file_unmap(&t->a, map[0]);
	file_unmap(&t->b, map[1]);
	file_unmap(&t->c, map[2]);
}

/* A limit of the group that is lowered reclaims too. */
TEST_F(cgroup, limit)
{
	struct trio *t = &self->t;

	for (int i = 0; i < MAX_TRIES && resident(_metadata, &t->b); i++) {
		ASSERT_EQ(0, cgroup_write(self->dir, "memory.high", "0"));
		ASSERT_EQ(0, cgroup_write(self->dir, "memory.high", "max"));
	}
	EXPECT_EQ(0, resident(_metadata, &t->b));
	check_totals(0);
	check_trio(t);
}

/* What is locked into memory stays there when somebody else writes to it. */
static void mlocked_stays(struct __test_metadata *_metadata, const char *dir,
			  struct trio *t, unsigned char *map)
{
	check_broken(t, 0, NPAGES);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	ASSERT_EQ(0, fsync(t->a.fd));
	for (int i = 0; i < 5; i++)
		cgroup_write(dir, "memory.reclaim", "4M");
	EXPECT_EQ(NPAGES, resident(_metadata, &t->a));
	check_map(&t->a, map);

	/* And may be merged again when it is unlocked. */
	ASSERT_EQ(0, munlock(map, NPAGES * PAGE));
	check_file(&t->b);
	EXPECT_EQ(HIT, merge_pages(_metadata, &t->b, 0, &t->a, 0, HIT));
	check_map(&t->a, map);
	file_unmap(&t->a, map);
	reclaim_all(_metadata, dir, t);
	check_trio(t);
}

TEST_F(cgroup, mlocked)
{
	unsigned char *map = file_map(_metadata, &self->t.a,
				      PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_EQ(0, mlock(map, NPAGES * PAGE));
	mlocked_stays(_metadata, self->dir, &self->t, map);
}

/* The same in a mapping that can only be read */
TEST_F(cgroup, mlocked_private)
{
	unsigned char *map = file_map(_metadata, &self->t.a, PROT_READ,
				      MAP_PRIVATE);

	touch(map, SIZE);
	ASSERT_EQ(0, mlock(map, NPAGES * PAGE));
	mlocked_stays(_metadata, self->dir, &self->t, map);
}

TEST_F(cgroup, mlocked_mapped)
{
	unsigned char *map = file_map(_metadata, &self->t.a,
				      PROT_READ | PROT_WRITE, MAP_SHARED);

	touch(map, SIZE);
	ASSERT_EQ(0, mlock(map, NPAGES * PAGE));
	mlocked_stays(_metadata, self->dir, &self->t, map);
}

TEST_F(cgroup, mlocked_on_fault)
{
	unsigned char *map = file_map(_metadata, &self->t.a,
				      PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_EQ(0, mlock2(map, NPAGES * PAGE, MLOCK_ONFAULT));
	touch(map, SIZE);
	mlocked_stays(_metadata, self->dir, &self->t, map);
}

/* What is locked stays locked when it is merged with yet more pages. */
TEST_F(cgroup, mlocked_moved)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d, e;

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	file_create(_metadata, &e, t->dir, "e", SIZE, 1);
	merge_all(&d, &e);
	map = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(0, mlock2(map, NPAGES * PAGE, MLOCK_ONFAULT));
	if (!control) {
		for (size_t i = 0; i < NPAGES; i++)
			EXPECT_EQ(-EBUSY, merge_pages(_metadata, &t->b, i,
						      &d, i, 1));
	}
	for (int i = 0; i < 5; i++)
		cgroup_write(self->dir, "memory.reclaim", "4M");
	EXPECT_EQ(NPAGES, resident(_metadata, &d));
	check_map(&d, map);
	file_unmap(&d, map);
	file_close(&d);
	file_close(&e);
}

/* The group that pays for shared pages goes away, and they do not. */
TEST_F(cgroup, gone)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(0, cgroup_write(CGROUP, "cgroup.procs", "0"));
	ASSERT_EQ(0, rmdir(self->dir));
	check_broken(t, 0, 0);
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	write_a(_metadata, t, 4 * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_trio(t);
	check_totals(3 * NPAGES - 2);
	file_unmap(&t->a, map);
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "3"));
	check_totals(0);
	check_trio(t);
	ASSERT_EQ(0, mkdir(self->dir, 0755));
}

/*
 * More anonymous memory than the group may have goes to a swap file, while the
 * shared pages are in use and written to.
 */
TEST_F(cgroup, swap)
{
	struct trio *t = &self->t;
	const size_t size = 32UL << 20;
	unsigned char *anon, *map, *page;
	char path[2 * MAX_PATH], text[32];

	snprintf(path, sizeof(path), "%s/swap", t->dir);
	ASSERT_EQ(0, run("touch %s && chmod 600 %s", path, path));
	if (fs_magic(t->dir) == BTRFS_SUPER_MAGIC) {
		ASSERT_EQ(0, run("chattr +C %s", path));
	}
	ASSERT_EQ(0, run("dd if=/dev/zero of=%s bs=1M count=64 status=none && "
			 "mkswap -q %s", path, path));
	ASSERT_EQ(0, swapon(path, 0)) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, cgroup_write(self->dir, "memory.high", "16M"));
	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	page = page_buffer(_metadata, PAGE);
	anon = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, anon);
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < size / PAGE; i++) {
			fill(page, PAGE, i);
			if (!round)
				memcpy(anon + i * PAGE, page, PAGE);
			ASSERT_EQ(0, memcmp(anon + i * PAGE, page, PAGE)) {
				TH_LOG("page %zu", i);
			}
			if (i % 256 == 0) {
				check_map(&t->a, map);
				check_file(&t->b);
			}
		}
		/* What was thrown out may have been, but not half of it. */
		check_trio(t);
		store_a(_metadata, t, map, (HIT + round) * PAGE, t->junk, PAGE);
		check_map(&t->a, map);
		check_trio(t);
	}
	snprintf(path, sizeof(path), "%s/memory.swap.current", self->dir);
	ASSERT_EQ(0, read_text(path, text, sizeof(text)));
	EXPECT_LT(size / 4, atol(text)) TH_LOG("hardly anything was swapped");
	munmap(anon, size);
	file_unmap(&t->a, map);
	ASSERT_EQ(0, cgroup_write(self->dir, "memory.high", "max"));
	snprintf(path, sizeof(path), "%s/swap", t->dir);
	ASSERT_EQ(0, swapoff(path));
	check_trio(t);
	free(page);
}

/*
 * Words go to one shared page after the other, until the group of who writes has
 * no memory for the next copy and he is killed.  Pages of a locked mapping can
 * not be thrown out to make room.
 */
static void out_of_memory(struct __test_metadata *_metadata, struct trio *t,
			  bool by_store)
{
	const size_t nr = 1024;
	char dir[MAX_PATH];
	struct file d, e;
	size_t written;
	int status;
	pid_t pid;

	SKIP_IF_LARGE();
	if (control)
		SKIP(return, "control run: nothing is copied");
	file_create(_metadata, &d, t->dir, "d", nr * PAGE, 4);
	file_create(_metadata, &e, t->dir, "e", nr * PAGE, 4);
	merge_all(&e, &d);
	cgroup_new(_metadata, dir, "oom");
	ASSERT_EQ(0, cgroup_write(dir, "memory.max", "2M"));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		unsigned char *map = file_map(_metadata, &d,
					      PROT_READ | PROT_WRITE,
					      MAP_SHARED);

		ASSERT_EQ(0, mlock2(map, nr * PAGE, MLOCK_ONFAULT));
		ASSERT_EQ(0, cgroup_write(dir, "cgroup.procs", "0"));
		for (size_t i = 0; i < nr; i++) {
			if (by_store)
				memcpy(map + i * PAGE, t->junk, 8);
			else if (pwrite(d.fd, t->junk, 8, i * PAGE) == 8)
				touch(map + i * PAGE, 1);
		}
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
		TH_LOG("status %x", status);
	}
	EXPECT_EQ(0, run("grep -qx 'oom_kill 1' %s/memory.events", dir));

	for (written = 0; written < nr; written++) {
		unsigned char word[8];

		ASSERT_EQ(8, pread(d.fd, word, 8, written * PAGE));
		if (memcmp(word, t->junk, 8))
			break;
		model_write(_metadata, &d, written * PAGE, word, 8);
	}
	EXPECT_LT(0, written);
	EXPECT_GT(nr, written);
	check_file(&d);
	check_file(&e);
	check_disk(&d);
	check_disk(&e);
	/* The copy may have been there when there was no memory for the rest. */
	EXPECT_SHARED(&d, written + 1, &e, written + 1);
	for (size_t i = 0; i < written; i++)
		EXPECT_APART(&d, i, &e, i);
	ASSERT_EQ(0, unlink(d.path));
	ASSERT_EQ(0, unlink(e.path));
	file_close(&d);
	file_close(&e);
	ASSERT_EQ(0, rmdir(dir));
	check_broken(t, 0, 0);
}

TEST_F(cgroup, out_of_memory_store)
{
	out_of_memory(_metadata, &self->t, true);
}

TEST_F(cgroup, out_of_memory_write)
{
	out_of_memory(_metadata, &self->t, false);
}

/*
 * Page cache tree nodes that hold nothing but shadow entries are reclaimed by a
 * shrinker; nodes of nothing but alias entries look much like them.  One page
 * in 64 makes many such nodes of few pages.
 */
TEST_F(cgroup, shadow_node_shrinker)
{
	struct trio *t = &self->t;
	const size_t nr = 320, stride = 64;
	long most = control ? 0 : counter(_metadata, "max_page_sharing");
	size_t root = 0, moved = 0;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", 0, 1);
	for (size_t i = 0; i < nr; i++) {
		ASSERT_EQ(PAGE, pwrite(d.fd, t->junk, PAGE,
				       i * stride * PAGE));
	}
	ASSERT_EQ(0, fsync(d.fd));
	for (size_t i = 1; i < nr; i++) {
		if (!control && i % most == 0) {
			root = i;
			continue;
		}
		ASSERT_EQ(1, merge_pages(_metadata, &d, root * stride, &d,
					 i * stride, 1));
	}
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "2"));
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "2"));
	for (size_t i = 1; i < nr; i++) {
		if (!control && !same_page(_metadata, &d, 0, &d, i * stride))
			moved++;
	}
	/* Those of further roots are apart from page 0 rightly. */
	if (!control) {
		EXPECT_EQ(most < nr ? nr - most : 0, moved);
	}
	check_totals(3 * NPAGES + nr);
	ASSERT_EQ(0, unlink(d.path));
	file_close(&d);
	sync();
	check_broken(t, 0, 0);
}

MANUAL_TEST_MAIN
