// SPDX-License-Identifier: GPL-2.0
/*
 * Memory management: who holds, mirrors, moves, watches or throws out pages of
 * memory meets shared pages of three files A, B and C.  Nobody may see bytes
 * of another file, or old ones, or tell by looking that a page is shared.
 */
#include <grp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <liburing.h>
#include <linux/futex.h>
#include <linux/kernel-page-flags.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>

#include "trio.h"
/* of the kernel tree */
#include "../../../lib/test_hmm_uapi.h"
#include "../../../mm/gup_test.h"
#include "../../include/uapi/linux/userfaultfd.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define NOBODY 65534
#define HUGE (512 * PAGE)

/* As in <linux/fs.h> of 6.7 and later. */
struct page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};

#define PAGEMAP_SCAN		_IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_WRITTEN		(1 << 1)
#define PAGE_IS_SOFT_DIRTY	(1 << 7)

/* include/linux/mm_types.h; gup_test hands it on */
#define FOLL_WRITE 1

/* ---- pins ---- */

FIXTURE(pins) {
	struct trio t;
	int gup;
};

FIXTURE_SETUP(pins)
{
	self->gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, self->gup) {
		TH_LOG("no gup_test in debugfs (CONFIG_GUP_TEST?)");
	}
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(pins)
{
	close(self->gup);
	trio_end(_metadata, &self->t);
}

/* Those that let go at once; the first two try it without locks. */
static const unsigned int short_pins[] = {
	GUP_FAST_BENCHMARK, PIN_FAST_BENCHMARK, GUP_BASIC_TEST, PIN_BASIC_TEST,
};

static void pin_once(struct __test_metadata *_metadata, int gup,
		     unsigned int cmd, const void *addr, size_t nr,
		     unsigned int flags)
{
	struct gup_test arg = {
		.addr = (uintptr_t)addr,
		.size = nr * PAGE,
		.nr_pages_per_call = nr,
		.gup_flags = flags,
	};

	ASSERT_EQ(0, ioctl(gup, cmd, &arg)) TH_LOG("%s", strerror(errno));
	EXPECT_EQ(nr * PAGE, arg.size);
}

/* Who holds a page for reading and not for long may hold the shared one. */
TEST_F(pins, short_read)
{
	struct trio *t = &self->t;
	const int kinds[][2] = {
		{ PROT_READ, MAP_SHARED },
		{ PROT_READ | PROT_WRITE, MAP_SHARED },
		{ PROT_READ, MAP_PRIVATE },
		{ PROT_READ | PROT_WRITE, MAP_PRIVATE },
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		for (size_t k = 0; k < ARRAY_SIZE(short_pins); k++) {
			unsigned char *map = file_map(_metadata, &t->a,
						      kinds[i][0],
						      kinds[i][1]);

			/* absent from page tables, and present */
			for (int twice = 0; twice < 2; twice++)
				pin_once(_metadata, self->gup, short_pins[k],
					 map, NPAGES, 0);
			check_map(&t->a, map);
			file_unmap(&t->a, map);
		}
	}
	check_broken(t, 0, 0);
}

TEST_F(pins, short_write)
{
	struct trio *t = &self->t;
	unsigned char *map;

	for (size_t k = 0; k < ARRAY_SIZE(short_pins); k++) {
		map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			       MAP_SHARED);
		if (k % 2)
			touch(map, SIZE);
		pin_once(_metadata, self->gup, short_pins[k],
			 map + (HIT + k) * PAGE, 1, FOLL_WRITE);
		check_map(&t->a, map);
		check_broken(t, HIT, HIT + k + 1);
		file_unmap(&t->a, map);
	}
}

/* It is the private copy that may be written to. */
TEST_F(pins, short_write_private)
{
	struct trio *t = &self->t;
	unsigned char *map;

	for (size_t k = 0; k < ARRAY_SIZE(short_pins); k++) {
		map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE);
		if (k % 2)
			touch(map, SIZE);
		pin_once(_metadata, self->gup, short_pins[k], map, NPAGES,
			 FOLL_WRITE);
		check_map(&t->a, map);
		file_unmap(&t->a, map);
	}
	check_broken(t, 0, 0);
}

static void pin_start(struct __test_metadata *_metadata, int gup,
		      const void *addr, size_t nr, __u32 flags)
{
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)addr,
		.size = nr * PAGE,
		.flags = flags,
	};

	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_START, &pin)) {
		TH_LOG("pin: %s", strerror(errno));
	}
}

/* Who holds the pages of A sees what A holds now. */
static void __check_pinned(struct __test_metadata *_metadata, int gup,
			   const struct file *f, int line)
{
	unsigned char *seen = page_buffer(_metadata, nr_pages(f) * PAGE);
	__u64 to = (uintptr_t)seen;

	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_READ, &to));
	__check_map(_metadata, f, "pin", seen, line);
	free(seen);
}

#define check_pinned(gup, f) __check_pinned(_metadata, gup, f, __LINE__)

/*
 * All pages, some of which are not shared any more, are pinned for long and for
 * reading, and then written to by several ways.  Until that ends none can be
 * merged.
 */
static void pin_whole(struct __test_metadata *_metadata,
		      FIXTURE_DATA(pins) *self, int fd, int prot, __u32 flags)
{
	struct trio *t = &self->t;
	struct iovec from = { t->junk, 10 };
	unsigned char *pinned, *map;

	SKIP_IF_LARGE();
	write_a(_metadata, t, 5 * PAGE, "plain", 5);
	pinned = mmap(NULL, NPAGES * PAGE, prot, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, pinned);
	touch(pinned, 3 * PAGE);
	pin_start(_metadata, self->gup, pinned, NPAGES, flags);
	check_pinned(self->gup, &t->a);
	check_broken(t, 0, NPAGES);

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	write_a(_metadata, t, HIT * PAGE + 50, t->junk, 100);
	store_a(_metadata, t, map, 3 * PAGE, t->junk, PAGE);
	ASSERT_EQ(10, pwritev2(t->a.fd, &from, 1, 4 * PAGE, RWF_DSYNC));
	model_write(_metadata, &t->a, 4 * PAGE, t->junk, 10);
	check_pinned(self->gup, &t->a);
	check_map(&t->a, map);

	for (size_t i = 0; i < NPAGES && !control; i++) {
		/* In strict mode nobody looks at what is pinned. */
		int want = i >= HIT && i < 6 && !strict ? -EILSEQ : -EBUSY;

		EXPECT_EQ(want, merge_pages(_metadata, &t->b, i, &t->a, i, 1)) {
			TH_LOG("page %zu", i);
		}
	}
	check_pinned(self->gup, &t->a);
	ASSERT_EQ(0, ioctl(self->gup, PIN_LONGTERM_TEST_STOP));
	ASSERT_EQ(HIT, merge_pages(_metadata, &t->b, 0, &t->a, 0, HIT));
	check_broken(t, HIT, NPAGES);
	check_map(&t->a, pinned);
	check_map(&t->a, map);
	file_unmap(&t->a, pinned);
	file_unmap(&t->a, map);
}

TEST_F(pins, longterm)
{
	pin_whole(_metadata, self, self->t.a.fd, PROT_READ, 0);
}

TEST_F(pins, longterm_fast)
{
	pin_whole(_metadata, self, self->t.a.fd, PROT_READ | PROT_WRITE,
		  PIN_LONGTERM_TEST_FLAG_USE_FAST);
}

/* A mapping that can never be written to */
TEST_F(pins, longterm_readonly_file)
{
	int fd = open(self->t.a.path, O_RDONLY);

	ASSERT_LE(0, fd);
	pin_whole(_metadata, self, fd, PROT_READ,
		  PIN_LONGTERM_TEST_FLAG_USE_FAST);
	close(fd);
}

/* The pin is that of a private copy. */
TEST_F(pins, longterm_private)
{
	struct trio *t = &self->t;
	struct file copy = t->a;
	unsigned char *map;

	for (int write = 0; write < 2; write++) {
		map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		pin_start(_metadata, self->gup, map, NPAGES, write ?
			  PIN_LONGTERM_TEST_FLAG_USE_WRITE : 0);
		check_broken(t, 0, 0);
		copy.want = malloc(SIZE);
		ASSERT_NE(NULL, copy.want);
		memcpy(copy.want, t->a.want, SIZE);
		memcpy(map + HIT * PAGE, t->junk, PAGE);
		memcpy(copy.want + HIT * PAGE, t->junk, PAGE);
		check_pinned(self->gup, &copy);
		check_map(&copy, map);
		ASSERT_EQ(0, ioctl(self->gup, PIN_LONGTERM_TEST_STOP));
		file_unmap(&t->a, map);
		free(copy.want);
	}
	check_broken(t, 0, 0);
}

/* A file system could not keep track of what is written through such a pin. */
TEST_F(pins, longterm_write)
{
	struct trio *t = &self->t;
	struct pin_longterm_test pin = { .size = NPAGES * PAGE };
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	pin.addr = (uintptr_t)map;
	for (int fast = 0; fast < 2; fast++) {
		pin.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE |
			    (fast ? PIN_LONGTERM_TEST_FLAG_USE_FAST : 0);
		EXPECT_EQ(-1, ioctl(self->gup, PIN_LONGTERM_TEST_START, &pin));
		EXPECT_EQ(EFAULT, errno);
	}
	check_map(&t->a, map);
	check_broken(t, 0, 0);
	file_unmap(&t->a, map);
}

/*
 * The next page in the pipe is one that @f once held or holds now: who puts a
 * page into a pipe may not change it before it is read.
 */
static void check_pipe(struct __test_metadata *_metadata, int pipe,
		       const struct file *f, const unsigned char *once)
{
	unsigned char seen[PAGE];

	ASSERT_EQ(PAGE, read(pipe, seen, PAGE));
	EXPECT_TRUE(!memcmp(seen, once, PAGE) ||
		    !memcmp(seen, f->want + HIT * PAGE, PAGE)) {
		TH_LOG("the pipe has what %s never held", f->path);
	}
}

/* A page in a pipe is not merged. */
TEST_F(pins, vmsplice)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct iovec from = { .iov_len = PAGE };
	struct file d;
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	from.iov_base = map + HIT * PAGE;
	ASSERT_EQ(PAGE, vmsplice(pipes[1], &from, 1, 0));
	check_broken(t, 0, 0);
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_pipe(_metadata, pipes[0], &t->a, t->b.want + HIT * PAGE);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	map = file_map(_metadata, &d, PROT_READ, MAP_SHARED);
	from.iov_base = map + HIT * PAGE;
	ASSERT_EQ(PAGE, vmsplice(pipes[1], &from, 1, 0));
	if (!control) {
		EXPECT_EQ(-EBUSY, merge_pages(_metadata, &t->b, HIT, &d, HIT,
					      1));
	}
	check_pipe(_metadata, pipes[0], &d, d.want + HIT * PAGE);
	merge_all(&t->b, &d);
	check_map(&d, map);
	check_file(&d);
	file_unmap(&d, map);
	file_close(&d);
	close(pipes[0]);
	close(pipes[1]);
}

/*
 * B and C are written to while the page is in a pipe.  Then A is alone with it,
 * and may not take it back as long as somebody else looks at it.
 */
TEST_F(pins, vmsplice_last_alias)
{
	struct trio *t = &self->t;
	struct iovec from = { .iov_len = PAGE };
	struct file *files[] = { &t->b, &t->c, &t->a };
	unsigned char *map, once[PAGE];
	int pipes[2];

	SKIP_IF_LARGE();
	memcpy(once, t->b.want + HIT * PAGE, PAGE);
	ASSERT_EQ(0, pipe(pipes));
	map = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	from.iov_base = map + HIT * PAGE;
	ASSERT_EQ(PAGE, vmsplice(pipes[1], &from, 1, 0));
	for (int i = 0; i < 3; i++) {
		unsigned char *own = t->junk + i * PAGE;

		ASSERT_EQ(PAGE, pwrite(files[i]->fd, own, PAGE, HIT * PAGE));
		model_write(_metadata, files[i], HIT * PAGE, own, PAGE);
	}
	check_pipe(_metadata, pipes[0], &t->b, once);
	check_map(&t->b, map);
	check_trio(t);
	check_totals(3 * NPAGES - 3);
	file_unmap(&t->b, map);
	close(pipes[0]);
	close(pipes[1]);
}

static int uring_io(struct __test_metadata *_metadata, struct io_uring *ring,
		    int fd, bool write, void *buf, unsigned int len, off_t off)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int ret;

	ASSERT_NE(NULL, sqe);
	if (write)
		io_uring_prep_write_fixed(sqe, fd, buf, len, off, 0);
	else
		io_uring_prep_read_fixed(sqe, fd, buf, len, off, 0);
	ASSERT_EQ(1, io_uring_submit(ring));
	ASSERT_EQ(0, io_uring_wait_cqe(ring, &cqe));
	ret = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return ret;
}

/* Fixed buffers are pins that last, for writing. */
TEST_F(pins, io_uring_buffers)
{
	struct trio *t = &self->t;
	struct io_uring ring;
	struct iovec iov = { .iov_len = NPAGES * PAGE };
	unsigned char *map;
	struct file d;

	ASSERT_EQ(0, io_uring_queue_init(8, &ring, 0)) {
		TH_LOG("CONFIG_IO_URING?");
	}
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	iov.iov_base = map;
	EXPECT_GT(0, io_uring_register_buffers(&ring, &iov, 1));
	check_broken(t, 0, 0);
	file_unmap(&t->a, map);

	/* private pages, out of and into a file */
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	iov.iov_base = map;
	ASSERT_EQ(0, io_uring_register_buffers(&ring, &iov, 1));
	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 5);
	ASSERT_EQ(PAGE, uring_io(_metadata, &ring, d.fd, true,
				 map + HIT * PAGE, PAGE, 0));
	model_write(_metadata, &d, 0, t->a.want + HIT * PAGE, PAGE);
	check_file(&d);
	ASSERT_EQ(PAGE, uring_io(_metadata, &ring, d.fd, false,
				 map + HIT * PAGE, PAGE, PAGE));
	EXPECT_EQ(0, memcmp(map + HIT * PAGE, d.want + PAGE, PAGE));
	check_broken(t, 0, 0);

	/* out of and into a file whose pages are shared */
	ASSERT_EQ(PAGE, uring_io(_metadata, &ring, t->b.fd, false, map, PAGE,
				 3 * PAGE));
	EXPECT_EQ(0, memcmp(map, t->b.want + 3 * PAGE, PAGE));
	ASSERT_EQ(PAGE, uring_io(_metadata, &ring, t->a.fd, true, map, PAGE,
				 HIT * PAGE));
	model_write(_metadata, &t->a, HIT * PAGE, t->b.want + 3 * PAGE, PAGE);
	check_broken(t, HIT, HIT + 1);
	ASSERT_EQ(0, io_uring_unregister_buffers(&ring));
	io_uring_queue_exit(&ring);
	file_unmap(&t->a, map);
	file_close(&d);
}

/* ---- devices with page tables of their own ---- */

FIXTURE(device) {
	struct trio t;
	int fd;
	unsigned char *area, *map_a, *map_b;
};

FIXTURE_SETUP(device)
{
	self->fd = open("/dev/hmm_dmirror0", O_RDWR);
	ASSERT_LE(0, self->fd) {
		TH_LOG("/dev/hmm_dmirror0: %s (CONFIG_TEST_HMM?)",
		       strerror(errno));
	}
	trio_begin(_metadata, &self->t);
	/* The driver forgets the page behind each range that is unmapped. */
	self->area = mmap(NULL, 5 * NPAGES * PAGE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->area);
	self->map_a = mmap(self->area + NPAGES * PAGE, NPAGES * PAGE,
			   PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			   self->t.a.fd, 0);
	ASSERT_NE(MAP_FAILED, self->map_a);
	self->map_b = mmap(self->area + 3 * NPAGES * PAGE, NPAGES * PAGE,
			   PROT_READ, MAP_SHARED | MAP_FIXED, self->t.b.fd, 0);
	ASSERT_NE(MAP_FAILED, self->map_b);
}

FIXTURE_TEARDOWN(device)
{
	munmap(self->area, 5 * NPAGES * PAGE);
	close(self->fd);
	trio_end(_metadata, &self->t);
}

static int device_do(int fd, unsigned int cmd, void *addr, void *buf,
		     size_t nr, __u64 *faults)
{
	struct hmm_dmirror_cmd arg = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)buf,
		.npages = nr,
	};

	if (ioctl(fd, cmd, &arg))
		return -errno;
	if (faults)
		*faults = arg.faults;
	return 0;
}

/* The device reads what @f holds.  Return: how often it had to fault. */
static __u64 __check_device(struct __test_metadata *_metadata, int fd,
			    const struct file *f, void *map, int line)
{
	unsigned char *seen = page_buffer(_metadata, nr_pages(f) * PAGE);
	__u64 faults = 0;

	ASSERT_EQ(0, device_do(fd, HMM_DMIRROR_READ, map, seen, nr_pages(f),
			       &faults));
	__check_map(_metadata, f, "device", seen, line);
	free(seen);
	return faults;
}

#define check_device(f, map) \
	__check_device(_metadata, self->fd, f, map, __LINE__)

/* Whoever writes, the device sees it; who maps another file, sees nothing. */
TEST_F(device, sees_writes)
{
	struct trio *t = &self->t;
	unsigned char *other;
	int fd;

	EXPECT_NE(0, check_device(&t->a, self->map_a));
	EXPECT_NE(0, check_device(&t->b, self->map_b));
	EXPECT_EQ(0, check_device(&t->a, self->map_a));
	check_broken(t, 0, 0);

	write_a(_metadata, t, HIT * PAGE + 9, t->junk, 50);
	check_device(&t->a, self->map_a);
	EXPECT_EQ(0, check_device(&t->b, self->map_b));

	self->map_a[3 * PAGE] ^= 0xff;
	model_write(_metadata, &t->a, 3 * PAGE, self->map_a + 3 * PAGE, 1);
	check_device(&t->a, self->map_a);

	/* through a mapping that the device does not know */
	other = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	store_a(_metadata, t, other, 4 * PAGE, t->junk, PAGE);
	check_device(&t->a, self->map_a);
	file_unmap(&t->a, other);

	fd = open(t->a.path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(PAGE, pwrite(fd, t->junk, PAGE, 5 * PAGE));
	close(fd);
	model_write(_metadata, &t->a, 5 * PAGE, t->junk, PAGE);
	check_device(&t->a, self->map_a);
	EXPECT_EQ(0, check_device(&t->b, self->map_b));
	check_broken(t, HIT, 6);
}

/* Merging takes pages out of devices' page tables, too. */
TEST_F(device, merge)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	map = file_map(_metadata, &d, PROT_READ, MAP_SHARED);
	check_device(&d, map);
	EXPECT_EQ(0, check_device(&d, map));
	merge_all(&t->b, &d);
	check_device(&d, map);
	ASSERT_EQ(PAGE, pwrite(d.fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &d, HIT * PAGE, t->junk, PAGE);
	check_device(&d, map);
	check_file(&d);
	check_disk(&d);
	check_trio(t);
	file_unmap(&d, map);
	file_close(&d);
}

TEST_F(device, writes)
{
	struct trio *t = &self->t;

	check_device(&t->a, self->map_a);
	ASSERT_EQ(0, device_do(self->fd, HMM_DMIRROR_WRITE,
			       self->map_a + HIT * PAGE, t->junk, 2, NULL));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, 2 * PAGE);
	check_map(&t->a, self->map_a);
	check_device(&t->a, self->map_a);
	check_device(&t->b, self->map_b);
	check_broken(t, HIT, HIT + 2);
	/* A page that only a device has looked at, in no page table */
	ASSERT_EQ(0, madvise(self->map_a, NPAGES * PAGE, MADV_DONTNEED));
	ASSERT_EQ(0, device_do(self->fd, HMM_DMIRROR_WRITE,
			       self->map_a + 5 * PAGE, t->junk, 1, NULL));
	model_write(_metadata, &t->a, 5 * PAGE, t->junk, PAGE);
	check_map(&t->a, self->map_a);
	check_device(&t->b, self->map_b);
	check_trio(t);
	check_totals(3 * NPAGES - 3);
	EXPECT_APART(&t->a, 5, &t->b, 5);
}

TEST_F(device, writes_private)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	check_device(&t->a, map);
	ASSERT_EQ(0, device_do(self->fd, HMM_DMIRROR_WRITE, map + HIT * PAGE,
			       t->junk, 1, NULL));
	EXPECT_EQ(0, memcmp(map + HIT * PAGE, t->junk, PAGE));
	EXPECT_EQ(0, memcmp(map, t->a.want, HIT * PAGE));
	check_broken(t, 0, 0);
	file_unmap(&t->a, map);
}

static unsigned char *snapshot(struct __test_metadata *_metadata, int fd,
			       void *map)
{
	static unsigned char prot[NPAGES];

	ASSERT_EQ(0, device_do(fd, HMM_DMIRROR_SNAPSHOT, map, prot, NPAGES,
			       NULL));
	return prot;
}

/* What the device may do with a shared page is to read it. */
TEST_F(device, snapshot)
{
	struct trio *t = &self->t;
	unsigned char *prot;

	touch(self->map_a, SIZE);
	prot = snapshot(_metadata, self->fd, self->map_a);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_EQ(HMM_DMIRROR_PROT_READ, prot[i]);
	self->map_a[HIT * PAGE] ^= 0xff;
	model_write(_metadata, &t->a, HIT * PAGE, self->map_a + HIT * PAGE, 1);
	touch(self->map_a, SIZE);
	prot = snapshot(_metadata, self->fd, self->map_a);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_EQ(i == HIT ? HMM_DMIRROR_PROT_WRITE :
			  HMM_DMIRROR_PROT_READ, prot[i]);
	}
	check_broken(t, HIT, HIT + 1);
}

/*
 * Memory of files does not move into devices.  That is found out only after the
 * page was taken out of all page tables, and has to get back into them.
 */
TEST_F(device, migrate)
{
	struct trio *t = &self->t;
	unsigned char *copy;

	copy = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	copy[HIT * PAGE] ^= 0xff;
	touch(self->map_a, SIZE);
	touch(self->map_b, SIZE);
	for (int i = 0; i < 2; i++) {
		void *map = i ? copy : self->map_a;
		unsigned char seen[NPAGES * PAGE];

		/* That nothing moves may count as a failure, or not. */
		device_do(self->fd, HMM_DMIRROR_MIGRATE_TO_DEV, map, seen,
			  NPAGES, NULL);
		check_map(&t->a, self->map_a);
		check_map(&t->b, self->map_b);
		EXPECT_EQ(t->a.want[HIT * PAGE] ^ 0xff, copy[HIT * PAGE]);
		EXPECT_EQ(0, memcmp(copy, t->a.want, HIT * PAGE));
	}
	check_device(&t->a, self->map_a);
	check_broken(t, 0, 0);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, self->map_a);
	check_map(&t->b, self->map_b);
	check_device(&t->a, self->map_a);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, copy);
}

/* Nor do devices get exclusive access to them. */
TEST_F(device, exclusive)
{
	struct trio *t = &self->t;
	unsigned char seen[NPAGES * PAGE];

	touch(self->map_b, SIZE);
	device_do(self->fd, HMM_DMIRROR_EXCLUSIVE, self->map_b, seen, NPAGES,
		  NULL);
	check_map(&t->b, self->map_b);
	check_device(&t->b, self->map_b);
	check_broken(t, 0, 0);
	/* In a mapping to write to this is a write. */
	device_do(self->fd, HMM_DMIRROR_EXCLUSIVE, self->map_a + HIT * PAGE,
		  seen, 1, NULL);
	check_map(&t->a, self->map_a);
	check_device(&t->a, self->map_a);
	check_trio(t);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, self->map_a);
	check_device(&t->a, self->map_a);
	check_broken(t, HIT, HIT + 1);
}

/* ---- mappings that change ---- */

FIXTURE(mm) {
	struct trio t;
};

FIXTURE_SETUP(mm)
{
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(mm)
{
	trio_end(_metadata, &self->t);
}

/* A file that is no longer needed does not count any more. */
static void gone(struct file *f)
{
	unlink(f->path);
	file_close(f);
	sync();
}

/* Write to A from below and through @map, which has to show both. */
static void write_both_ways(struct __test_metadata *_metadata, struct trio *t,
			    unsigned char *map)
{
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	store_a(_metadata, t, map, (HIT + 1) * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 2);
}

TEST_F(mm, mremap)
{
	struct trio *t = &self->t;
	const size_t len = NPAGES * PAGE;
	unsigned char *map, *room, *twice, *moved;
	unsigned long pfn;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	pfn = pfn_of(map + HIT * PAGE);
	room = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, room);
	ASSERT_EQ(room, mremap(map, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       room));
	EXPECT_EQ(pfn, pfn_of(room + HIT * PAGE));
	twice = mremap(room, 0, len, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, twice);
	touch(twice, SIZE);
	moved = mremap(twice, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	ASSERT_NE(MAP_FAILED, moved);
	check_map(&t->a, room);
	check_map(&t->a, twice);
	check_map(&t->a, moved);
	check_broken(t, 0, 0);
	write_both_ways(_metadata, t, moved);
	check_map(&t->a, room);
	check_map(&t->a, twice);
	file_unmap(&t->a, room);
	file_unmap(&t->a, twice);
	file_unmap(&t->a, moved);
}

/* One page of the file at the place of another */
TEST_F(mm, remap_file_pages)
{
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(0, syscall(SYS_remap_file_pages, map, PAGE, 0, HIT, 0));
	EXPECT_EQ(0, memcmp(map, t->a.want + HIT * PAGE, PAGE));
	memcpy(map, t->junk, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	EXPECT_EQ(0, memcmp(map + HIT * PAGE, t->junk, PAGE));
	check_broken(t, HIT, HIT + 1);
	munmap(map, PAGE);
	munmap(map + PAGE, (NPAGES - 1) * PAGE);
}

/* Page table entries that fork() copies, without a fault. */
TEST_F(mm, fork_private)
{
	struct trio *t = &self->t;
	unsigned char *map;
	int sock[2];
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	map[0] ^= 0xff;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		unsigned char first = map[0];

		EXPECT_NE(0, pfn_of(map + HIT * PAGE));
		tell(_metadata, sock[1]);
		hear(_metadata, sock[1]);
		map[0] ^= 0xff;
		model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
		check_map(&t->a, map);
		EXPECT_EQ(t->a.want[0] ^ 0xff, first);
		_exit(_metadata->exit_code);
	}
	hear(_metadata, sock[0]);
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	tell(_metadata, sock[0]);
	reap(_metadata, pid);
	EXPECT_EQ(t->a.want[0] ^ 0xff, map[0]);
	map[0] ^= 0xff;
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&t->a, map);
}

/* Advice that changes nothing about a file. */
TEST_F(mm, madvise)
{
	const int advice[] = {
		MADV_COLD, MADV_POPULATE_READ, MADV_WILLNEED, MADV_SEQUENTIAL,
		MADV_RANDOM, MADV_DONTNEED, MADV_DONTNEED_LOCKED,
		MADV_POPULATE_READ,
	};
	struct trio *t = &self->t;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = 0; i < ARRAY_SIZE(advice); i++) {
		ASSERT_EQ(0, madvise(map, NPAGES * PAGE, advice[i])) {
			TH_LOG("advice %d: %s", advice[i], strerror(errno));
		}
		check_map(&t->a, map);
		check_totals(3 * NPAGES);
	}
	check_broken(t, 0, 0);
	write_both_ways(_metadata, t, map);
	file_unmap(&t->a, map);
}

/* A hole, punched by who maps the file. */
TEST_F(mm, madvise_remove)
{
	struct trio *t = &self->t;
	unsigned char *map, *old;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	old = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, madvise(map + HIT * PAGE, 4 * PAGE, MADV_REMOVE)) {
		TH_LOG("%s", strerror(errno));
	}
	model_zero(&t->a, HIT * PAGE, 4 * PAGE);
	check_map(&t->a, map);
	check_map(&t->a, old);
	check_broken(t, HIT, HIT + 4);
	file_unmap(&t->a, map);
	file_unmap(&t->a, old);
}

/* ---- programs ---- */

/* A program runs as cat(1) does, between @to and @from. */
static pid_t spawn(struct __test_metadata *_metadata, const char *path,
		   int *to, int *from)
{
	int in[2], out[2];
	pid_t pid;

	ASSERT_EQ(0, pipe2(in, O_CLOEXEC));
	ASSERT_EQ(0, pipe2(out, O_CLOEXEC));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		execl(path, "cat", NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	*to = in[1];
	*from = out[0];
	return pid;
}

static void echoes(struct __test_metadata *_metadata, int to, int from)
{
	char seen[6] = "";

	ASSERT_EQ(5, write(to, "hello", 5));
	ASSERT_EQ(5, read(from, seen, 5));
	EXPECT_STREQ("hello", seen);
}

/* Two programs run on the same pages, and one of them is replaced meanwhile. */
TEST_F(mm, exec)
{
	struct trio *t = &self->t;
	struct file exe[2], new;
	int to[2], from[2];
	size_t n;
	pid_t pid[2];

	SKIP_IF_LARGE();
	for (int i = 0; i < 2; i++) {
		file_copy(_metadata, &exe[i], t->dir, i ? "cat1" : "cat0",
			  "/bin/cat");
		ASSERT_EQ(0, chmod(exe[i].path, 0755));
	}
	n = nr_pages(&exe[0]);
	merge_all(&exe[0], &exe[1]);
	/* What is open to be written to, by whomever, can not run. */
	for (int i = 0; i < 2; i++) {
		close(exe[i].fd);
		exe[i].fd = open(exe[i].path, O_RDONLY);
		ASSERT_LE(0, exe[i].fd);
	}
	for (int i = 0; i < 2; i++) {
		pid[i] = spawn(_metadata, exe[i].path, &to[i], &from[i]);
		echoes(_metadata, to[i], from[i]);
	}
	check_totals(3 * NPAGES + 2 * n);

	file_copy(_metadata, &new, t->dir, "new", "/bin/true");
	ASSERT_EQ(0, chmod(new.path, 0755));
	ASSERT_EQ(0, rename(new.path, exe[0].path));
	drop_file(_metadata, &exe[0]);
	for (int i = 0; i < 2; i++) {
		echoes(_metadata, to[i], from[i]);
		check_file(&exe[i]);
	}
	file_close(&new);
	EXPECT_EQ(0, run("%s", exe[0].path));
	for (int i = 0; i < 2; i++) {
		close(to[i]);
		reap(_metadata, pid[i]);
		close(from[i]);
	}
	gone(&exe[0]);
	EXPECT_COUNTER("aliases", 3 * NPAGES + n);
	pid[1] = spawn(_metadata, exe[1].path, &to[1], &from[1]);
	echoes(_metadata, to[1], from[1]);
	close(to[1]);
	reap(_metadata, pid[1]);
	close(from[1]);
	check_file(&exe[1]);
	gone(&exe[1]);
	check_broken(t, 0, 0);
}

/* x86: nop; lea 1(%rdi),%eax; ret */
static const unsigned char code[] = { 0x90, 0x8d, 0x47, 0x01, 0xc3 };

#define CODE (HIT * PAGE + 16)

static int call(const unsigned char *map, int n)
{
	return ((int (*)(int))(map + CODE))(n);
}

/* Twins C and D with a function each, and executable mappings of them */
static void make_code(struct __test_metadata *_metadata, const char *dir,
		      struct file f[2], unsigned char *map[2])
{
	for (int i = 0; i < 2; i++) {
		file_create(_metadata, &f[i], dir, i ? "code1" : "code0",
			    NPAGES * PAGE, 3);
		model_write(_metadata, &f[i], CODE, code, sizeof(code));
		ASSERT_EQ(sizeof(code), pwrite(f[i].fd, code, sizeof(code),
					       CODE));
		ASSERT_EQ(0, fsync(f[i].fd));
		map[i] = file_map(_metadata, &f[i], PROT_READ | PROT_EXEC,
				  MAP_PRIVATE);
	}
}

/* Count how often this process comes past the function of @f. */
static int probe(struct __test_metadata *_metadata, const struct file *f)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.config1 = (uintptr_t)f->path,
		.config2 = CODE,
	};
	char text[16];
	int fd;

	ASSERT_EQ(0, read_text("/sys/bus/event_source/devices/uprobe/type",
			       text, sizeof(text))) {
		TH_LOG("no uprobes (CONFIG_UPROBE_EVENTS?)");
	}
	attr.type = atoi(text);
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	ASSERT_LE(0, fd) TH_LOG("perf_event_open: %s", strerror(errno));
	return fd;
}

/* Both functions work, and only the first one is counted. */
static void __check_probe(struct __test_metadata *_metadata, int fd,
			  unsigned char *map[2], int line)
{
	__u64 before, after;

	ASSERT_EQ(sizeof(before), read(fd, &before, sizeof(before)));
	for (int i = 0; i < 3; i++)
		EXPECT_EQ(i + 1, call(map[0], i)) TH_LOG("line %d", line);
	for (int i = 0; i < 5; i++)
		EXPECT_EQ(i + 1, call(map[1], i)) TH_LOG("line %d", line);
	ASSERT_EQ(sizeof(after), read(fd, &after, sizeof(after)));
	EXPECT_EQ(3, after - before) TH_LOG("line %d", line);
}

#define check_probe(fd, map) __check_probe(_metadata, fd, map, __LINE__)

/* The break point is in the memory of this process, and in no file. */
static void probed(struct __test_metadata *_metadata, struct trio *t,
		   bool merge_first)
{
	const unsigned char int3 = 0xcc;
	unsigned char *map[2];
	struct file f[2];
	int fd;

	make_code(_metadata, t->dir, f, map);
	if (merge_first)
		merge_all(&f[0], &f[1]);
	touch(map[0], NPAGES * PAGE);
	touch(map[1], NPAGES * PAGE);
	fd = probe(_metadata, &f[0]);
	check_probe(fd, map);
	if (!merge_first) {
		merge_all(&f[0], &f[1]);
		EXPECT_SHARED(&f[0], HIT, &f[1], HIT);
		check_probe(fd, map);
	}
	EXPECT_EQ(int3, map[0][CODE]);
	check_map(&f[1], map[1]);
	check_file(&f[0]);
	check_file(&f[1]);
	/* The other file goes its way. */
	ASSERT_EQ(PAGE, pwrite(f[1].fd, t->junk, PAGE, 3 * PAGE));
	model_write(_metadata, &f[1], 3 * PAGE, t->junk, PAGE);
	ASSERT_EQ(1, pwrite(f[1].fd, &int3, 1, HIT * PAGE));
	model_write(_metadata, &f[1], HIT * PAGE, &int3, 1);
	check_probe(fd, map);
	check_map(&f[1], map[1]);
	close(fd);

	check_map(&f[0], map[0]);
	EXPECT_EQ(2, call(map[0], 1));
	for (int i = 0; i < 2; i++) {
		check_file(&f[i]);
		check_disk(&f[i]);
		file_unmap(&f[i], map[i]);
		gone(&f[i]);
	}
	check_broken(t, 0, 0);
}

TEST_F(mm, uprobe)
{
	probed(_metadata, &self->t, true);
}

TEST_F(mm, merge_with_uprobe)
{
	probed(_metadata, &self->t, false);
}

/* ---- who watches pages ---- */

#define PM_SOFT_DIRTY (1ULL << 55)

/* The first pages in a row of this mapping that are in this category */
static struct page_region scan(struct __test_metadata *_metadata,
			       unsigned char *map, __u64 category)
{
	struct page_region found = {};
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)map,
		.end = (uintptr_t)map + NPAGES * PAGE,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = category,
		.return_mask = category,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY), n;

	ASSERT_LE(0, fd);
	n = ioctl(fd, PAGEMAP_SCAN, &arg);
	ASSERT_LE(0, n) TH_LOG("PAGEMAP_SCAN: %s", strerror(errno));
	close(fd);
	found.start = n ? (found.start - (uintptr_t)map) / PAGE : 0;
	found.end = n ? (found.end - (uintptr_t)map) / PAGE : 0;
	return found;
}

/* Of this mapping exactly the pages from @first to before @end_ are in it. */
#define EXPECT_SCAN(map, category, first, end_)				\
	do {								\
		struct page_region found = scan(_metadata, map, category); \
									\
		EXPECT_EQ(first, found.start);				\
		EXPECT_EQ(end_, found.end);				\
	} while (0)

/* Only what was written to is dirty, not what was merged. */
TEST_F(mm, soft_dirty)
{
	struct trio *t = &self->t;
	unsigned char *map, *other;
	struct file d;

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	other = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(other, SIZE);
	ASSERT_EQ(0, write_text("/proc/self/clear_refs", "4")) {
		TH_LOG("CONFIG_MEM_SOFT_DIRTY?");
	}
	merge_all(&t->b, &d);
	check_map(&d, other);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_EQ(0, pagemap_of(map + i * PAGE) & PM_SOFT_DIRTY);
		EXPECT_EQ(0, pagemap_of(other + i * PAGE) & PM_SOFT_DIRTY);
	}
	map[HIT * PAGE] ^= 0xff;
	model_write(_metadata, &t->a, HIT * PAGE, map + HIT * PAGE, 1);
	other[4 * PAGE] ^= 0xff;
	model_write(_metadata, &d, 4 * PAGE, other + 4 * PAGE, 1);
	check_map(&t->a, map);
	check_map(&d, other);
	EXPECT_SCAN(map, PAGE_IS_SOFT_DIRTY, HIT, HIT + 1);
	EXPECT_SCAN(other, PAGE_IS_SOFT_DIRTY, 4, 5);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_EQ(i == HIT, !!(pagemap_of(map + i * PAGE) &
				       PM_SOFT_DIRTY));
		EXPECT_EQ(i == 4, !!(pagemap_of(other + i * PAGE) &
				     PM_SOFT_DIRTY));
	}
	check_file(&d);
	file_unmap(&t->a, map);
	file_unmap(&d, other);
	gone(&d);
	check_broken(t, HIT, HIT + 1);
}

static int uffd_open(struct __test_metadata *_metadata)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC,
	};
	int uffd;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_LE(0, uffd) TH_LOG("%s (CONFIG_USERFAULTFD?)", strerror(errno));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api)) {
		TH_LOG("%s", strerror(errno));
	}
	return uffd;
}

static void protect(struct __test_metadata *_metadata, int uffd, void *map)
{
	const struct uffdio_range range = {
		.start = (uintptr_t)map,
		.len = NPAGES * PAGE,
	};
	struct uffdio_register reg = {
		.range = range,
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = range,
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		TH_LOG("%s", strerror(errno));
	}
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp)) {
		TH_LOG("%s", strerror(errno));
	}
}

/* userfaultfd keeps track of writes, through this mapping, and of no others. */
TEST_F(mm, userfaultfd_wp)
{
	struct trio *t = &self->t;
	unsigned char *map, *copy;
	int uffd = uffd_open(_metadata);

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	copy = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	protect(_metadata, uffd, map);
	protect(_metadata, uffd, copy);
	check_map(&t->a, map);
	check_map(&t->a, copy);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 0, 0);
	EXPECT_SCAN(copy, PAGE_IS_WRITTEN, 0, 0);

	copy[HIT * PAGE] ^= 0xff;
	EXPECT_SCAN(copy, PAGE_IS_WRITTEN, HIT, HIT + 1);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 0, 0);
	check_broken(t, 0, 0);
	store_a(_metadata, t, map, 3 * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 3, 4);
	EXPECT_SCAN(copy, PAGE_IS_WRITTEN, HIT, HIT + 1);
	EXPECT_EQ(t->a.want[HIT * PAGE] ^ 0xff, copy[HIT * PAGE]);
	copy[HIT * PAGE] ^= 0xff;
	check_map(&t->a, copy);

	/* A write by another way, and then one by this, to the same page */
	protect(_metadata, uffd, map);
	write_a(_metadata, t, 4 * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 0, 0);
	map[4 * PAGE] ^= 0xff;
	model_write(_metadata, &t->a, 4 * PAGE, map + 4 * PAGE, 1);
	check_map(&t->a, map);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 4, 5);
	check_broken(t, 3, 5);
	file_unmap(&t->a, map);
	file_unmap(&t->a, copy);
	close(uffd);
}

/* Being merged is not being written to. */
TEST_F(mm, merge_with_userfaultfd_wp)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d;
	int uffd = uffd_open(_metadata);

	file_create(_metadata, &d, t->dir, "d", SIZE, 1);
	map = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	protect(_metadata, uffd, map);
	merge_all(&t->b, &d);
	check_map(&d, map);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, 0, 0);
	map[HIT * PAGE] ^= 0xff;
	model_write(_metadata, &d, HIT * PAGE, map + HIT * PAGE, 1);
	EXPECT_SCAN(map, PAGE_IS_WRITTEN, HIT, HIT + 1);
	check_map(&d, map);
	check_file(&d);
	check_trio(t);
	file_unmap(&d, map);
	file_close(&d);
	close(uffd);
}

/* To who asks about physical pages, a shared one is a page of files. */
TEST_F(mm, kpageflags)
{
	const __u64 yes = 1ULL << KPF_UPTODATE | 1ULL << KPF_LRU |
			  1ULL << KPF_MMAP;
	const __u64 no = 1ULL << KPF_DIRTY | 1ULL << KPF_WRITEBACK |
			 1ULL << KPF_ANON | 1ULL << KPF_KSM |
			 1ULL << KPF_SWAPBACKED | 1ULL << KPF_NOPAGE |
			 1ULL << KPF_COMPOUND_HEAD | 1ULL << KPF_HWPOISON;
	struct trio *t = &self->t;
	unsigned char *map[4];
	unsigned long pfn;
	__u64 flags, nr;

	SKIP_IF_LARGE();
	map[0] = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = map_a(_metadata, t, PROT_READ, MAP_PRIVATE);
	map[2] = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	map[3] = file_map(_metadata, &t->c, PROT_READ, MAP_SHARED);
	touch(map[2], SIZE);
	touch(map[3], SIZE);
	for (size_t i = 0; i < NPAGES; i++) {
		pfn = pfn_of(map[0] + i * PAGE);
		ASSERT_NE(0, pfn);
		nr = page_entry(_metadata, "kpagecount", pfn);
		EXPECT_EQ(control ? 2 : 4, nr);
		flags = page_entry(_metadata, "kpageflags", pfn);
		EXPECT_EQ(yes, flags & (yes | no));
		EXPECT_EQ(page_entry(_metadata, "kpagecgroup",
				     pfn_of(map[2] + i * PAGE)),
			  page_entry(_metadata, "kpagecgroup", pfn));
	}
	memcpy(map[0] + HIT * PAGE, t->junk, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map[1]);
	EXPECT_EQ(2, page_entry(_metadata, "kpagecount",
				pfn_of(map[0] + HIT * PAGE)));
	EXPECT_EQ(control ? 1 : 2, page_entry(_metadata, "kpagecount",
					      pfn_of(map[2] + HIT * PAGE)));
	check_broken(t, HIT, HIT + 1);
	for (int i = 0; i < 4; i++)
		munmap(map[i], NPAGES * PAGE);
}

#define IDLE "/sys/kernel/mm/page_idle/bitmap"

/* Was the page idle since it was marked?  Or mark it. */
static bool idle(struct __test_metadata *_metadata, unsigned long pfn,
		 bool mark)
{
	const off_t off = pfn / 64 * sizeof(__u64);
	__u64 word = 1ULL << pfn % 64;
	int fd;

	fd = open(IDLE, O_RDWR);
	ASSERT_LE(0, fd) TH_LOG("%s: %s (CONFIG_IDLE_PAGE_TRACKING?)", IDLE,
				strerror(errno));
	if (mark) {
		ASSERT_EQ(sizeof(word), pwrite(fd, &word, sizeof(word), off));
	} else {
		ASSERT_EQ(sizeof(word), pread(fd, &word, sizeof(word), off));
	}
	close(fd);
	return word >> pfn % 64 & 1;
}

/* Whichever file it is used through, a page that is used is not idle. */
TEST_F(mm, idle_pages)
{
	struct trio *t = &self->t;
	struct file *files[] = { &t->a, &t->b, &t->c };
	unsigned char *map[3];
	unsigned long pfn;

	SKIP_IF_LARGE();
	for (int i = 0; i < 3; i++) {
		map[i] = file_map(_metadata, files[i], PROT_READ, MAP_SHARED);
		touch(map[i], SIZE);
	}
	drain_lru();
	for (int i = 0; i < 3; i++) {
		pfn = pfn_of(map[i] + HIT * PAGE);
		ASSERT_NE(0, pfn);
		idle(_metadata, pfn, true);
		/* Processors remember translations of pages they have used. */
		for (int j = 0; j < 3; j++) {
			ASSERT_EQ(0, mprotect(map[j], SIZE, PROT_NONE));
			ASSERT_EQ(0, mprotect(map[j], SIZE, PROT_READ));
		}
		EXPECT_TRUE(idle(_metadata, pfn, false));
		touch(map[i] + HIT * PAGE, 1);
		EXPECT_FALSE(idle(_metadata, pfn, false)) {
			TH_LOG("used through file %d", i);
		}
		EXPECT_EQ(pfn, pfn_of(map[i] + HIT * PAGE));
	}
	check_broken(t, 0, 0);
	for (int i = 0; i < 3; i++)
		file_unmap(files[i], map[i]);
}

#define DAMON "/sys/kernel/mm/damon/admin/kdamonds"

static void damon(struct __test_metadata *_metadata, const char *name,
		  unsigned long value)
{
	char path[MAX_PATH], text[32];

	snprintf(path, MAX_PATH, DAMON "/%s", name);
	snprintf(text, sizeof(text), "%lu", value);
	ASSERT_EQ(0, write_text(path, text)) TH_LOG("%s", path);
}

/*
 * DAMON finds that memory from @start to @end is not used, and throws its pages
 * out; @operations says whose addresses these are.
 */
static void damon_pageout(struct __test_metadata *_metadata, struct trio *t,
			  unsigned char *map, const char *operations,
			  unsigned long start, unsigned long end)
{
	const char *scheme = DAMON "/0/contexts/0/schemes/0/action";

	damon(_metadata, "nr_kdamonds", 1);
	damon(_metadata, "0/contexts/nr_contexts", 1);
	ASSERT_EQ(0, write_text(DAMON "/0/contexts/0/operations", operations));
	damon(_metadata, "0/contexts/0/targets/nr_targets", 1);
	damon(_metadata, "0/contexts/0/targets/0/pid_target", getpid());
	damon(_metadata, "0/contexts/0/targets/0/regions/nr_regions", 1);
	damon(_metadata, "0/contexts/0/targets/0/regions/0/start", start);
	damon(_metadata, "0/contexts/0/targets/0/regions/0/end", end);
	damon(_metadata, "0/contexts/0/schemes/nr_schemes", 1);
	ASSERT_EQ(0, write_text(scheme, "pageout"));
	damon(_metadata, "0/contexts/0/schemes/0/access_pattern/sz/max", ~0UL);
	damon(_metadata, "0/contexts/0/schemes/0/access_pattern/age/max",
	      INT_MAX);
	ASSERT_EQ(0, write_text(DAMON "/0/state", "on"));
	/* The harness ends this if it never happens. */
	while (resident(_metadata, &t->a))
		usleep(20000);
	ASSERT_EQ(0, write_text(DAMON "/0/state", "off"));
	damon(_metadata, "nr_kdamonds", 0);
	check_totals(0);
	check_map(&t->a, map);
	check_trio(t);
	merge_all(&t->b, &t->a);
	merge_all(&t->b, &t->c);
	/* Read again they may be in large folios, which break as a whole. */
	store_a(_metadata, t, map, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, map);
	check_trio(t);
	EXPECT_APART(&t->a, HIT, &t->b, HIT);
}

TEST_F(mm, damon_pageout)
{
	struct trio *t = &self->t;
	unsigned char *map = map_a(_metadata, t, PROT_READ | PROT_WRITE,
				   MAP_SHARED);

	damon_pageout(_metadata, t, map, "vaddr", (uintptr_t)map,
		      (uintptr_t)map + NPAGES * PAGE);
	file_unmap(&t->a, map);
}

/* The same by the pages themselves, of which the files share each */
TEST_F(mm, damon_pageout_physical)
{
	struct trio *t = &self->t;
	unsigned char *map = map_a(_metadata, t, PROT_READ | PROT_WRITE,
				   MAP_SHARED);
	unsigned long first = ~0UL, last = 0;

	for (size_t i = 0; i < NPAGES; i++) {
		first = MIN(first, pfn_of(map + i * PAGE));
		last = MAX(last, pfn_of(map + i * PAGE));
	}
	damon_pageout(_metadata, t, map, "paddr", first * PAGE,
		      (last + 1) * PAGE);
	file_unmap(&t->a, map);
}

/* ---- pages that move or go away ---- */

/* Several processes have a shared page when its memory turns out to be bad. */
TEST_F(mm, hwpoison)
{
	const char *poison = "/sys/kernel/debug/hwpoison/corrupt-pfn";
	struct trio *t = &self->t;
	struct file *files[] = { &t->a, &t->b, &t->c, &t->a };
	unsigned char *map[4];
	unsigned long bad = 0;
	char text[32];
	int sock[4][2];
	pid_t pid[4];

	SKIP_IF_LARGE();
	for (int i = 0; i < 4; i++) {
		map[i] = file_map(_metadata, files[i], PROT_READ,
				  i % 2 ? MAP_PRIVATE : MAP_SHARED);
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock[i]));
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (!pid[i]) {
			touch(map[i], SIZE);
			tell(_metadata, sock[i][1]);
			hear(_metadata, sock[i][1]);
			check_map(files[i], map[i]);
			EXPECT_NE(bad, pfn_of(map[i] + HIT * PAGE));
			_exit(_metadata->exit_code);
		}
		if (!i) {
			touch(map[0], SIZE);
			bad = pfn_of(map[0] + HIT * PAGE);
			ASSERT_NE(0, bad);
		}
		hear(_metadata, sock[i][0]);
	}
	snprintf(text, sizeof(text), "%lu", bad);
	ASSERT_EQ(0, write_text(poison, text)) {
		TH_LOG("%s (CONFIG_HWPOISON_INJECT?)", poison);
	}
	check_totals(3 * NPAGES - 3);
	for (int i = 0; i < 4; i++) {
		tell(_metadata, sock[i][0]);
		reap(_metadata, pid[i]);
		check_map(files[i], map[i]);
		file_unmap(files[i], map[i]);
		close(sock[i][0]);
		close(sock[i][1]);
	}
	check_trio(t);
	EXPECT_NE(0, page_entry(_metadata, "kpageflags", bad) &
		     1ULL << KPF_HWPOISON);
	/* The others are merged as before. */
	merge_all(&t->b, &t->a);
	merge_all(&t->b, &t->c);
	check_broken(t, 0, 0);
}

/* Bad memory that somebody holds: the others get good memory all the same. */
TEST_F(mm, hwpoison_held)
{
	struct trio *t = &self->t;
	off_t off = HIT * PAGE;
	unsigned char *map;
	unsigned long bad;
	char text[32];
	int pipes[2];
	pid_t pid;

	SKIP_IF_LARGE();
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(t->c.fd, &off, pipes[1], NULL, PAGE, 0));
	map = map_a(_metadata, t, PROT_READ, MAP_SHARED);
	if (control) {
		unsigned char *own = file_map(_metadata, &t->c, PROT_READ,
					      MAP_SHARED);

		touch(own, SIZE);
		bad = pfn_of(own + HIT * PAGE);
		file_unmap(&t->c, own);
	} else {
		bad = pfn_of(map + HIT * PAGE);
	}
	ASSERT_NE(0, bad);
	snprintf(text, sizeof(text), "%lu", bad);
	/* It may say that it did not get rid of the page. */
	write_text("/sys/kernel/debug/hwpoison/corrupt-pfn", text);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		check_map(&t->a, map);
		EXPECT_NE(bad, pfn_of(map + HIT * PAGE));
		_exit(_metadata->exit_code);
	}
	reap(_metadata, pid);
	check_trio(t);
	check_totals(3 * NPAGES - 3);
	close(pipes[0]);
	close(pipes[1]);
	file_unmap(&t->a, map);
}

#define MEMORY "/sys/devices/system/memory"

/* Which block of memory has this page, as the kernel divides it? */
static unsigned long block_of(struct __test_metadata *_metadata,
			      unsigned long pfn)
{
	char text[32];

	ASSERT_EQ(0, read_text(MEMORY "/block_size_bytes", text,
			       sizeof(text))) {
		TH_LOG("no memory blocks (CONFIG_MEMORY_HOTPLUG?)");
	}
	return pfn * PAGE / strtoul(text, NULL, 16);
}

static int block_set(unsigned long block, const char *state)
{
	char path[MAX_PATH];

	snprintf(path, MAX_PATH, MEMORY "/memory%lu/state", block);
	return write_text(path, state);
}

/*
 * Make a block of memory one that only takes what can be moved out again, and
 * let this process take its memory from there.  Return: the block, or -1.
 */
static long movable_block(struct __test_metadata *_metadata)
{
	unsigned long max = 0, node = 0, mask;
	char path[MAX_PATH];
	long block;

	while (snprintf(path, MAX_PATH, MEMORY "/memory%lu", max) &&
	       !access(path, F_OK))
		max++;
	/* There may be a hole below 4 GiB. */
	for (unsigned long i = max; i < max + 512; i++) {
		snprintf(path, MAX_PATH, MEMORY "/memory%lu", i);
		if (!access(path, F_OK))
			max = i + 1;
	}
	for (block = max - 1; block >= 0; block--) {
		if (!block_set(block, "offline"))
			break;
	}
	if (block < 0)
		return -1;
	ASSERT_EQ(0, block_set(block, "online_movable"));
	for (node = 0; node < 64; node++) {
		snprintf(path, MAX_PATH, MEMORY "/memory%ld/node%lu", block,
			 node);
		if (!access(path, F_OK))
			break;
	}
	mask = 1UL << node;
	ASSERT_EQ(0, syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 64UL));
	return block;
}

/* Memory that is to be taken out of the machine holds shared pages. */
TEST_F(mm, offline)
{
	struct trio *t = &self->t;
	struct pin_longterm_test pin = { .size = PAGE };
	unsigned char *map[2];
	struct file d, e;
	long block;
	int gup;

	SKIP_IF_LARGE();
	if (strict)
		SKIP(return, "strict mode draws frames that stay where they are");
	block = movable_block(_metadata);
	if (block < 0)
		SKIP(return, "this machine can not do without any memory");
	file_create(_metadata, &d, t->dir, "d", SIZE, 3);
	file_create(_metadata, &e, t->dir, "e", SIZE, 3);
	merge_all(&d, &e);
	map[0] = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = file_map(_metadata, &e, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map[0], SIZE);
	touch(map[1], SIZE);
	ASSERT_EQ(block, block_of(_metadata, pfn_of(map[0] + HIT * PAGE)));

	/* What is pinned there, and for long, goes elsewhere before. */
	gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, gup);
	pin.addr = (uintptr_t)map[1] + 5 * PAGE;
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_START, &pin)) {
		TH_LOG("pin: %s", strerror(errno));
	}
	touch(map[1], SIZE);
	EXPECT_NE(block, block_of(_metadata, pfn_of(map[1] + 5 * PAGE)));
	check_map(&e, map[1]);

	for (int i = 0; block_set(block, "offline"); i++) {
		ASSERT_GT(MAX_TRIES, i) TH_LOG("offline: %s", strerror(errno));
		ASSERT_EQ(0, fsync(d.fd));
		ASSERT_EQ(0, fsync(e.fd));
	}
	check_totals(3 * NPAGES + 2 * NPAGES - 1);
	check_map(&d, map[0]);
	check_map(&e, map[1]);
	EXPECT_NE(block, block_of(_metadata, pfn_of(map[0] + HIT * PAGE)));
	EXPECT_SHARED(&d, HIT, &e, HIT);
	memcpy(map[0] + HIT * PAGE, t->junk, PAGE);
	model_write(_metadata, &d, HIT * PAGE, t->junk, PAGE);
	ASSERT_EQ(PAGE, pwrite(e.fd, t->junk, PAGE, 5 * PAGE));
	model_write(_metadata, &e, 5 * PAGE, t->junk, PAGE);
	check_map(&d, map[0]);
	check_map(&e, map[1]);
	close(gup);
	ASSERT_EQ(0, block_set(block, "online_kernel"));
	file_unmap(&d, map[0]);
	file_unmap(&e, map[1]);
	check_file(&d);
	check_file(&e);
	check_disk(&d);
	check_disk(&e);
	gone(&d);
	gone(&e);
	check_broken(t, 0, 0);
}

static int node_of(struct __test_metadata *_metadata, void *addr)
{
	int node;

	ASSERT_EQ(0, syscall(SYS_move_pages, 0, 1UL, &addr, NULL, &node, 0));
	return node;
}

/* Run on a processor of this node. */
static void run_on(struct __test_metadata *_metadata, int node)
{
	char path[MAX_PATH];
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		snprintf(path, MAX_PATH,
			 "/sys/devices/system/node/node%d/cpu%d", node, cpu);
		if (!access(path, F_OK))
			CPU_SET(cpu, &set);
	}
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(set), &set));
}

/* Pages follow the process that uses them. */
TEST_F(mm, numa_balancing)
{
	const char *knob = "/proc/sys/kernel/numa_balancing";
	struct trio *t = &self->t;
	unsigned char *map;
	int to;

	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "this machine has one node only");
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	to = !node_of(_metadata, map + HIT * PAGE);
	run_on(_metadata, to);
	ASSERT_EQ(0, write_text(knob, "1")) TH_LOG("CONFIG_NUMA_BALANCING?");
	/* The harness ends this if it never happens. */
	do {
		touch(map, SIZE);
	} while (node_of(_metadata, map + HIT * PAGE) != to);
	check_map(&t->a, map);
	check_broken(t, 0, 0);
	write_both_ways(_metadata, t, map);
	ASSERT_EQ(0, write_text(knob, "0"));
	file_unmap(&t->a, map);
}

/* ---- huge pages ---- */

/* Reserve room for a huge page, and map a file there. */
static unsigned char *map_huge(struct __test_metadata *_metadata,
			       const struct file *f, unsigned char **area)
{
	unsigned char *map;

	*area = mmap(NULL, 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_NE(MAP_FAILED, *area);
	map = (unsigned char *)(((uintptr_t)*area + HUGE - 1) & ~(HUGE - 1));
	ASSERT_EQ(map, mmap(map, HUGE, PROT_READ | PROT_EXEC,
			    MAP_PRIVATE | MAP_FIXED, f->fd, 0));
	return map;
}

/* Files that khugepaged took into huge pages are merged after it. */
TEST_F(mm, merge_collapsed)
{
	struct trio *t = &self->t;
	unsigned char *area[2], *map[2];
	struct file f[2];

	for (int i = 0; i < 2; i++) {
		file_create(_metadata, &f[i], t->dir, i ? "e" : "d", HUGE, 3);
		/* It only takes files that nobody may write to. */
		close(f[i].fd);
		f[i].fd = open(f[i].path, O_RDONLY);
		ASSERT_LE(0, f[i].fd);
		map[i] = map_huge(_metadata, &f[i], &area[i]);
		touch(map[i], HUGE);
		drain_lru();
		EXPECT_EQ(0, madvise(map[i], HUGE, MADV_COLLAPSE)) {
			TH_LOG("not collapsed: %s", strerror(errno));
		}
	}
	ASSERT_EQ(4, merge_pages(_metadata, &f[0], HIT, &f[1], HIT, 4));
	for (int i = 0; i < 2; i++) {
		check_map(&f[i], map[i]);
		check_file(&f[i]);
	}
	EXPECT_SHARED(&f[0], HIT, &f[1], HIT);
	check_totals(3 * NPAGES + 2 * 4);
	/* and as soon as somebody may write there are no huge pages */
	close(f[1].fd);
	f[1].fd = open(f[1].path, O_RDWR);
	ASSERT_LE(0, f[1].fd);
	ASSERT_EQ(PAGE, pwrite(f[1].fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &f[1], HIT * PAGE, t->junk, PAGE);
	for (int i = 0; i < 2; i++) {
		check_map(&f[i], map[i]);
		check_file(&f[i]);
		check_disk(&f[i]);
		munmap(area[i], 2 * HUGE);
		gone(&f[i]);
	}
	check_broken(t, 0, 0);
}

/* One shared page is among those that a huge page would take in. */
TEST_F(mm, collapse_mixed)
{
	struct trio *t = &self->t;
	unsigned char *area, *map;
	struct file d, e;

	file_create(_metadata, &d, t->dir, "d", HUGE, 3);
	file_create(_metadata, &e, t->dir, "e", HUGE, 3);
	ASSERT_EQ(1, merge_pages(_metadata, &e, 100, &d, 100, 1));
	close(d.fd);
	d.fd = open(d.path, O_RDONLY);
	ASSERT_LE(0, d.fd);
	map = map_huge(_metadata, &d, &area);
	touch(map, HUGE);
	/* Whether it collapses is a matter of the file system. */
	madvise(map, HUGE, MADV_COLLAPSE);
	EXPECT_SHARED(&d, 100, &e, 100);
	check_map(&d, map);
	check_file(&d);
	ASSERT_EQ(PAGE, pwrite(e.fd, t->junk, PAGE, 100 * PAGE));
	model_write(_metadata, &e, 100 * PAGE, t->junk, PAGE);
	check_map(&d, map);
	check_file(&d);
	check_file(&e);
	close(d.fd);
	d.fd = open(d.path, O_RDWR);
	ASSERT_LE(0, d.fd);
	ASSERT_EQ(PAGE, pwrite(d.fd, t->junk, PAGE, 101 * PAGE));
	model_write(_metadata, &d, 101 * PAGE, t->junk, PAGE);
	check_map(&d, map);
	check_disk(&d);
	check_disk(&e);
	munmap(area, 2 * HUGE);
	gone(&d);
	gone(&e);
	check_broken(t, 0, 0);
}

#define KHUGEPAGED "/sys/kernel/mm/transparent_hugepage/khugepaged/"

static long full_scans(struct __test_metadata *_metadata)
{
	char text[32];

	ASSERT_EQ(0, read_text(KHUGEPAGED "full_scans", text, sizeof(text)));
	return atol(text);
}

/* The thread that takes pages into huge ones meets a shared one among them. */
TEST_F(mm, khugepaged)
{
	struct trio *t = &self->t;
	unsigned char *area[2], *map[2];
	char scan_before[32], alloc_before[32];
	struct file f[2], e;
	long scans;

	file_create(_metadata, &e, t->dir, "e", HUGE, 3);
	for (int i = 0; i < 2; i++) {
		file_create(_metadata, &f[i], t->dir, i ? "g" : "d", HUGE, 3);
		if (i == 0)
			ASSERT_EQ(1, merge_pages(_metadata, &e, 100, &f[0], 100,
						 1));
		close(f[i].fd);
		f[i].fd = open(f[i].path, O_RDONLY);
		ASSERT_LE(0, f[i].fd);
		map[i] = map_huge(_metadata, &f[i], &area[i]);
		ASSERT_EQ(0, madvise(map[i], HUGE, MADV_HUGEPAGE));
		touch(map[i], HUGE);
	}
	drain_lru();
	ASSERT_EQ(0, read_text(KHUGEPAGED "scan_sleep_millisecs", scan_before,
			       sizeof(scan_before)));
	ASSERT_EQ(0, read_text(KHUGEPAGED "alloc_sleep_millisecs", alloc_before,
			       sizeof(alloc_before)));
	ASSERT_EQ(0, write_text(KHUGEPAGED "alloc_sleep_millisecs", "0"));
	ASSERT_EQ(0, write_text(KHUGEPAGED "scan_sleep_millisecs", "0"));
	/* That of which no page is shared shows when it has been here. */
	scans = full_scans(_metadata);
	EXPECT_TRUE(WAIT_FOR((touch(map[1], PAGE),
			      full_scans(_metadata) >= scans + 2 &&
			      page_entry(_metadata, "kpageflags",
					 pfn_of(map[1])) & 1ULL << KPF_THP)));
	ASSERT_EQ(0, write_text(KHUGEPAGED "scan_sleep_millisecs",
				scan_before));
	ASSERT_EQ(0, write_text(KHUGEPAGED "alloc_sleep_millisecs",
				alloc_before));

	EXPECT_SHARED(&f[0], 100, &e, 100);
	check_map(&f[0], map[0]);
	check_map(&f[1], map[1]);
	ASSERT_EQ(PAGE, pwrite(e.fd, t->junk, PAGE, 100 * PAGE));
	model_write(_metadata, &e, 100 * PAGE, t->junk, PAGE);
	check_map(&f[0], map[0]);
	check_file(&e);
	for (int i = 0; i < 2; i++) {
		close(f[i].fd);
		f[i].fd = open(f[i].path, O_RDWR);
		ASSERT_LE(0, f[i].fd);
		ASSERT_EQ(PAGE, pwrite(f[i].fd, t->junk, PAGE, 101 * PAGE));
		model_write(_metadata, &f[i], 101 * PAGE, t->junk, PAGE);
		check_map(&f[i], map[i]);
		check_disk(&f[i]);
		munmap(area[i], 2 * HUGE);
		gone(&f[i]);
	}
	check_disk(&e);
	gone(&e);
	check_broken(t, 0, 0);
}

/* A futex in a page that can only be read, of a private mapping */
TEST_F(mm, futex_private)
{
	struct trio *t = &self->t;
	const struct timespec no_time = {};
	unsigned int *map;

	map = (void *)map_a(_metadata, t, PROT_READ, MAP_PRIVATE);
	EXPECT_EQ(-1, syscall(SYS_futex, map, FUTEX_WAIT, map[0] + 1,
			      &no_time, NULL, 0));
	EXPECT_EQ(EAGAIN, errno) TH_LOG("%s", strerror(errno));
	file_unmap(&t->a, (unsigned char *)map);
}

/* ---- charges that move from one memory cgroup to another ---- */

/* Version 1 of memory cgroups moves them with the process that maps the pages. */
FIXTURE(moves) {
	char mnt[MAX_PATH];
	char dir[2][MAX_PATH];
};

static long usage(struct __test_metadata *_metadata, const char *dir)
{
	char path[2 * MAX_PATH], text[64];

	snprintf(path, sizeof(path), "%s/memory.usage_in_bytes", dir);
	ASSERT_EQ(0, read_text(path, text, sizeof(text)));
	return atol(text);
}

/* The controller changes versions when nobody uses it, nor has memory left. */
static int mount_memcg(const char *mnt)
{
	for (int i = 0; i < MAX_TRIES; i++) {
		cgroup_write(CGROUP, "cgroup.subtree_control", "-memory");
		if (!mount("none", mnt, "cgroup", 0, "memory"))
			return 0;
		write_text("/proc/sys/vm/drop_caches", "3");
		usleep(20000);
	}
	return -errno;
}

/*
 * The controller does not come back as long as anything is charged that was in
 * use then, so no test that comes later would find it.
 */
FIXTURE_SETUP(moves)
{
	if (!number_from_env("KSM_EXT_MEMCG_V1", 0))
		SKIP(return, "for a guest of its own: KSM_EXT_MEMCG_V1=1");
	snprintf(self->mnt, MAX_PATH, "/tmp/memory.%d", getpid());
	ASSERT_EQ(0, mkdir(self->mnt, 0755));
	ASSERT_EQ(0, mount_memcg(self->mnt)) {
		TH_LOG("%s (CONFIG_MEMCG_V1?)", strerror(errno));
	}
	for (int i = 0; i < 2; i++) {
		ASSERT_GT(MAX_PATH, snprintf(self->dir[i], MAX_PATH, "%s/%d",
					     self->mnt, i));
		ASSERT_EQ(0, mkdir(self->dir[i], 0755));
		/* Anonymous memory, and files */
		ASSERT_EQ(0, cgroup_write(self->dir[i],
					  "memory.move_charge_at_immigrate",
					  "3"));
	}
}

FIXTURE_TEARDOWN(moves)
{
	for (int i = 0; i < 2; i++)
		EXPECT_EQ(0, rmdir(self->dir[i]));
	EXPECT_EQ(0, umount(self->mnt));
	EXPECT_EQ(0, rmdir(self->mnt));
}

static void move_charges(struct __test_metadata *_metadata,
			 FIXTURE_DATA(moves) *self)
{
	struct trio trio = {}, *t = &trio;
	unsigned char *map[2];
	long before;

	ASSERT_EQ(0, cgroup_write(self->dir[0], "cgroup.procs", "0"));
	trio_begin(_metadata, t);
	/* Pages that are in the page table, and pages that are not */
	map[0] = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = file_map(_metadata, &t->b, PROT_READ, MAP_SHARED);
	for (int i = 0; i < 4; i++) {
		before = usage(_metadata, self->dir[!(i % 2)]);
		ASSERT_EQ(0, cgroup_write(self->dir[!(i % 2)], "cgroup.procs",
					  "0"));
		EXPECT_LE(before + (long)(NPAGES * PAGE),
			  usage(_metadata, self->dir[!(i % 2)]));
		check_broken(t, 0, 0);
		check_map(&t->a, map[0]);
		check_map(&t->b, map[1]);
	}
	write_both_ways(_metadata, t, map[0]);
	file_unmap(&t->a, map[0]);
	file_unmap(&t->b, map[1]);
	check_trio(t);
	trio_end(_metadata, t);
}

/* By a process of its own, which leaves no memory in them. */
TEST_F(moves, charge)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		move_charges(_metadata, self);
		_exit(_metadata->exit_code);
	}
	reap(_metadata, pid);
}

/* ---- what somebody without privileges can tell ---- */

/*
 * The owner has a file that nobody else may read, and a watcher one that all
 * may read, with the same bytes.  What the owner does with his is none of the
 * watcher's business: the watcher shall see the same whether pages are shared or
 * not.
 */
enum step {
	BOTH_MAP, MERGED, BOTH_TOUCH, OWNER_MAPS_MORE, OWNER_READS,
	OWNER_UNMAPS, WATCHER_MAPS_MORE, OWNER_DROPS, OWNER_WRITES, NSTEPS,
};

static const char *const step_names[] = {
	"both map their file", "merged", "both touch it again",
	"the owner maps it twice more", "the owner reads it",
	"the owner unmaps it", "the watcher maps its file once more",
	"the owner drops it", "the owner writes to it",
};

static const bool watcher_touches[NSTEPS] = {
	[BOTH_MAP] = true, [BOTH_TOUCH] = true, [WATCHER_MAPS_MORE] = true,
};

/* Which pages are in memory, as the watcher can find out */
struct view {
	unsigned char mincore[NPAGES];
	struct cachestat cachestat[NPAGES];
	bool cached[NPAGES];	/* read without waiting */
};

/* What the watcher's /proc says of its mapping */
enum { RSS, PSS, SHARED_CLEAN, PRIVATE_CLEAN, REFERENCED, NFIELDS };

static const char *const smaps_fields[NFIELDS] = {
	"Rss", "Pss", "Shared_Clean", "Private_Clean", "Referenced",
};

struct counts {
	long smaps[NFIELDS];	/* in kB */
	long mapmax;		/* of numa_maps; 0 if that says nothing */
	bool exclusive[NPAGES];	/* bit 56 of pagemap */
};

/* Go to what "smaps" or "numa_maps" says of the mapping that begins at @map. */
static FILE *open_maps(struct __test_metadata *_metadata, const char *name,
		       const unsigned char *map, char *line, int size)
{
	char path[MAX_PATH];
	FILE *in;

	snprintf(path, MAX_PATH, "/proc/self/%s", name);
	in = fopen(path, "r");
	ASSERT_NE(NULL, in) TH_LOG("%s: %s", path, strerror(errno));
	while (fgets(line, size, in))
		if (strtoul(line, NULL, 16) == (unsigned long)map)
			return in;
	ASSERT_TRUE(false) TH_LOG("%s: no %p", path, map);
	return in;
}

static void count_mappings(struct __test_metadata *_metadata, struct counts *c,
			   unsigned char *map)
{
	size_t found = 0;
	char line[1024];
	char *mapmax;
	FILE *in;
	int fd;

	in = open_maps(_metadata, "smaps", map, line, sizeof(line));
	while (found < NFIELDS && fgets(line, sizeof(line), in)) {
		char format[64];

		snprintf(format, sizeof(format), "%s: %%ld kB",
			 smaps_fields[found]);
		if (sscanf(line, format, &c->smaps[found]) == 1)
			found++;
	}
	fclose(in);
	ASSERT_EQ(NFIELDS, found);

	in = open_maps(_metadata, "numa_maps", map, line, sizeof(line));
	mapmax = strstr(line, "mapmax=");
	c->mapmax = mapmax ? atol(mapmax + strlen("mapmax=")) : 0;
	fclose(in);

	fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_LE(0, fd) TH_LOG("pagemap: %s", strerror(errno));
	for (size_t i = 0; i < NPAGES; i++) {
		__u64 entry;

		ASSERT_EQ(sizeof(entry),
			  pread(fd, &entry, sizeof(entry),
				((unsigned long)map / PAGE + i) *
				sizeof(entry)));
		c->exclusive[i] = entry >> 56 & 1;
	}
	close(fd);
}

/*
 * Can the watcher move its pages to another node?
 * Return: how many mbind(2) did move.  What move_pages(2) says is in @moved.
 */
static int move_mapping(int *moved, unsigned char *map)
{
	int before[NPAGES], after[NPAGES], nodes[NPAGES], bound = 0;
	unsigned long other_node;
	void *pages[NPAGES];

	for (size_t i = 0; i < NPAGES; i++)
		pages[i] = map + i * PAGE;
	/* Without nodes it tells where they are. */
	syscall(SYS_move_pages, 0, (unsigned long)NPAGES, pages, NULL, before,
		0);
	other_node = 1UL << !before[0];
	syscall(SYS_mbind, map, (unsigned long)NPAGES * PAGE, MPOL_BIND,
		&other_node, 64UL, MPOL_MF_MOVE);
	syscall(SYS_mbind, map, (unsigned long)NPAGES * PAGE, MPOL_DEFAULT, NULL,
		0UL, 0UL);
	syscall(SYS_move_pages, 0, (unsigned long)NPAGES, pages, NULL, after,
		0);
	for (size_t i = 0; i < NPAGES; i++) {
		bound += before[i] != after[i];
		nodes[i] = !after[i];
	}
	syscall(SYS_move_pages, 0, (unsigned long)NPAGES, pages, nodes, moved,
		MPOL_MF_MOVE);
	return bound;
}

static void watch(struct __test_metadata *_metadata, struct view *v, int fd,
		  unsigned char *map)
{
	ASSERT_EQ(0, mincore(map, NPAGES * PAGE, v->mincore));
	for (size_t i = 0; i < NPAGES; i++) {
		char byte;
		struct iovec iov = { &byte, 1 };
		struct cachestat_range range = { i * PAGE, PAGE };

		ASSERT_EQ(0, syscall(SYS_cachestat, fd, &range,
				     &v->cachestat[i], 0));
		v->cached[i] = preadv2(fd, &iov, 1, i * PAGE, RWF_NOWAIT) == 1;
	}
}

struct seen {
	struct view views[NSTEPS];
	struct counts counts[NSTEPS];
	int moved[NSTEPS][NPAGES];
	int bound[NSTEPS];
};

/* The watcher looks when it is told to, and touches its pages before that. */
static void watcher(struct __test_metadata *_metadata, const struct file *f,
		    const struct file *secret, struct seen *seen, int sock)
{
	unsigned char *map, *more = MAP_FAILED;
	char touch_first;
	int fd;

	ASSERT_EQ(0, setgroups(0, NULL));
	ASSERT_EQ(0, setresgid(NOBODY, NOBODY, NOBODY));
	ASSERT_EQ(0, setresuid(NOBODY, NOBODY, NOBODY));
	ASSERT_EQ(0, prctl(PR_SET_DUMPABLE, 1));
	EXPECT_EQ(-1, open(secret->path, O_RDONLY));
	fd = open(f->path, O_RDONLY);
	ASSERT_LE(0, fd) TH_LOG("%s: %s", f->path, strerror(errno));
	map = mmap(NULL, NPAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	for (int step = 0; step < NSTEPS; step++) {
		ASSERT_EQ(1, read(sock, &touch_first, 1));
		if (step == WATCHER_MAPS_MORE) {
			more = mmap(NULL, NPAGES * PAGE, PROT_READ, MAP_SHARED,
				    fd, 0);
			ASSERT_NE(MAP_FAILED, more);
			touch(more, NPAGES * PAGE);
		}
		if (touch_first)
			touch(map, NPAGES * PAGE);
		count_mappings(_metadata, &seen->counts[step], map);
		watch(_metadata, &seen->views[step], fd, map);
		seen->bound[step] = move_mapping(seen->moved[step], map);
		/* What the watcher has read by itself is not to count. */
		ASSERT_EQ(0, write_text("/proc/self/clear_refs", "1"));
		tell(_metadata, sock);
	}
	_exit(_metadata->exit_code);
}

FIXTURE(oracle) {
	char dir[MAX_PATH];
	struct seen *seen[2];	/* with pages that are not shared, and are */
};

static void watch_steps(struct __test_metadata *_metadata, const char *dir,
			bool shared, struct seen *seen)
{
	unsigned char *map[3] = {};
	struct file f, secret;
	int sock[2];
	pid_t pid;

	file_create(_metadata, &f, dir, "all", NPAGES * PAGE, 3);
	file_create(_metadata, &secret, dir, "mine", NPAGES * PAGE, 3);
	ASSERT_EQ(0, chmod(secret.path, 0600));
	/* Of others' files mincore() tells nothing. */
	ASSERT_EQ(0, chown(f.path, NOBODY, NOBODY));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		watcher(_metadata, &f, &secret, seen, sock[1]);
	for (int step = 0; step < NSTEPS; step++) {
		char touch_first = step == BOTH_MAP || step == BOTH_TOUCH;

		if (step == BOTH_MAP)
			map[0] = file_map(_metadata, &secret, PROT_READ |
					  PROT_WRITE, MAP_SHARED);
		if (step == MERGED && shared)
			merge_all(&secret, &f);
		if (step == OWNER_MAPS_MORE) {
			for (int i = 1; i < 3; i++) {
				map[i] = file_map(_metadata, &secret,
						  PROT_READ, MAP_SHARED);
				touch(map[i], NPAGES * PAGE);
			}
		}
		if (step == OWNER_READS) {
			for (int i = 0; i < 3; i++)
				check_file(&secret);
		}
		if (step == OWNER_UNMAPS) {
			for (int i = 0; i < 3; i++)
				file_unmap(&secret, map[i]);
		}
		if (step == OWNER_DROPS)
			drop_file(_metadata, &secret);
		if (step == OWNER_WRITES) {
			ASSERT_EQ(4, pwrite(secret.fd, "mine", 4, HIT * PAGE));
			model_write(_metadata, &secret, HIT * PAGE, "mine", 4);
		}
		if (touch_first)
			touch(map[0], NPAGES * PAGE);
		ASSERT_EQ(1, write(sock[0], &touch_first, 1));
		hear(_metadata, sock[0]);
	}
	reap(_metadata, pid);
	check_file(&f);
	check_file(&secret);
	gone(&f);
	gone(&secret);
	close(sock[0]);
	close(sock[1]);
}

FIXTURE_SETUP(oracle)
{
	test_begin(_metadata, self->dir);
	ASSERT_EQ(0, chmod(self->dir, 0755));
	for (int i = 0; i < 2; i++) {
		self->seen[i] = mmap(NULL, sizeof(struct seen),
				     PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(MAP_FAILED, self->seen[i]);
		watch_steps(_metadata, self->dir, i, self->seen[i]);
	}
}

FIXTURE_TEARDOWN(oracle)
{
	for (int i = 0; i < 2; i++)
		munmap(self->seen[i], sizeof(struct seen));
	test_end(_metadata, self->dir);
}

TEST_F(oracle, resident)
{
	for (int step = 0; step < NSTEPS; step++) {
		EXPECT_EQ(0, memcmp(&self->seen[0]->views[step],
				    &self->seen[1]->views[step],
				    sizeof(struct view))) {
			TH_LOG("when %s", step_names[step]);
		}
	}
	/* The test can see all that: */
	for (int i = 0; i < 2; i++) {
		const struct view *v = &self->seen[i]->views[BOTH_MAP];

		EXPECT_EQ(1, v->mincore[HIT] & 1);
		EXPECT_EQ(1, v->cachestat[HIT].nr_cache);
		EXPECT_TRUE(v->cached[HIT]);
	}
}

TEST_F(oracle, mappings)
{
	for (int step = 0; step < NSTEPS; step++) {
		const struct counts *plain = &self->seen[0]->counts[step];
		const struct counts *shared = &self->seen[1]->counts[step];

		/* Its pages were taken out of the page table. */
		if (step == MERGED)
			continue;
		for (size_t i = 0; i < NFIELDS; i++) {
			/* Of its own looks some go by the TLB. */
			if (i == REFERENCED && watcher_touches[step])
				continue;
			EXPECT_EQ(plain->smaps[i], shared->smaps[i]) {
				TH_LOG("%s when %s", smaps_fields[i],
				       step_names[step]);
			}
		}
		EXPECT_EQ(plain->mapmax, shared->mapmax) {
			TH_LOG("mapmax when %s", step_names[step]);
		}
		EXPECT_EQ(0, memcmp(plain->exclusive, shared->exclusive,
				    sizeof(plain->exclusive))) {
			TH_LOG("pagemap when %s", step_names[step]);
		}
	}
	/* The test can see all that: */
	EXPECT_EQ(NPAGES * PAGE / 1024,
		  self->seen[1]->counts[OWNER_UNMAPS].smaps[PRIVATE_CLEAN]);
	EXPECT_EQ(NPAGES * PAGE / 1024,
		  self->seen[1]->counts[WATCHER_MAPS_MORE].smaps[SHARED_CLEAN]);
	EXPECT_EQ(2, self->seen[1]->counts[WATCHER_MAPS_MORE].mapmax);
}

TEST_F(oracle, move_pages)
{
	const int (*moved)[NPAGES] = self->seen[1]->moved;

	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "one node: try NUMA=2");
	SKIP_IF_CONTROL();
	for (int step = BOTH_TOUCH; step < NSTEPS; step++) {
		for (size_t i = 0; i < NPAGES; i++) {
			EXPECT_EQ(-EACCES, moved[step][i]) {
				TH_LOG("page %zu when %s", i, step_names[step]);
			}
		}
		EXPECT_EQ(0, self->seen[1]->bound[step]) {
			TH_LOG("mbind when %s", step_names[step]);
		}
	}
	/* Its own, which nobody else has mapped, it can move. */
	EXPECT_LT(0, self->seen[0]->bound[BOTH_TOUCH]);
}

MANUAL_TEST_MAIN
