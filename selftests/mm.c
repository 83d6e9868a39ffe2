// SPDX-License-Identifier: GPL-2.0
/*
 * Memory management: who holds, mirrors, moves, watches or throws out pages of
 * memory meets shared pages of three files A, B and C.  Nobody may see bytes
 * of another file, or old ones, or tell by looking that a page is shared.
 */
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <liburing.h>

#include "trio.h"
/* of the kernel tree */
#include "../../../lib/test_hmm_uapi.h"
#include "../../../mm/gup_test.h"

/* include/linux/mm_types.h; gup_test hands it on */
#define FOLL_WRITE 1

static unsigned char *map_a(struct __test_metadata *_metadata,
			    const struct trio *t, int prot, int flags)
{
	unsigned char *map = file_map(_metadata, &t->a, prot, flags);

	touch(map, SIZE);
	return map;
}

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

	ASSERT_EQ(5, pwrite(t->a.fd, "plain", 5, 5 * PAGE));
	model_write(_metadata, &t->a, 5 * PAGE, "plain", 5);
	pinned = mmap(NULL, NPAGES * PAGE, prot, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, pinned);
	touch(pinned, 3 * PAGE);
	pin_start(_metadata, self->gup, pinned, NPAGES, flags);
	check_pinned(self->gup, &t->a);
	check_broken(t, 0, NPAGES);

	map = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(100, pwrite(t->a.fd, t->junk, 100, HIT * PAGE + 50));
	model_write(_metadata, &t->a, HIT * PAGE + 50, t->junk, 100);
	memcpy(map + 3 * PAGE, t->junk, PAGE);
	model_write(_metadata, &t->a, 3 * PAGE, t->junk, PAGE);
	ASSERT_EQ(10, pwritev2(t->a.fd, &from, 1, 4 * PAGE, RWF_DSYNC));
	model_write(_metadata, &t->a, 4 * PAGE, t->junk, 10);
	check_pinned(self->gup, &t->a);
	check_map(&t->a, map);

	for (size_t i = 0; i < NPAGES && !control; i++) {
		int want = i == HIT || (i > HIT && i < 6) ? -EILSEQ : -EBUSY;

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
	memcpy(map + HIT * PAGE, t->junk, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
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

	ASSERT_EQ(50, pwrite(t->a.fd, t->junk, 50, HIT * PAGE + 9));
	model_write(_metadata, &t->a, HIT * PAGE + 9, t->junk, 50);
	check_device(&t->a, self->map_a);
	EXPECT_EQ(0, check_device(&t->b, self->map_b));

	self->map_a[3 * PAGE] ^= 0xff;
	model_write(_metadata, &t->a, 3 * PAGE, self->map_a + 3 * PAGE, 1);
	check_device(&t->a, self->map_a);

	/* through a mapping that the device does not know */
	other = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE, MAP_SHARED);
	memcpy(other + 4 * PAGE, t->junk, PAGE);
	model_write(_metadata, &t->a, 4 * PAGE, t->junk, PAGE);
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

		/* Whether it counts as failed that nothing moved is no matter. */
		device_do(self->fd, HMM_DMIRROR_MIGRATE_TO_DEV, map, seen,
			  NPAGES, NULL);
		check_map(&t->a, self->map_a);
		check_map(&t->b, self->map_b);
		EXPECT_EQ(t->a.want[HIT * PAGE] ^ 0xff, copy[HIT * PAGE]);
		EXPECT_EQ(0, memcmp(copy, t->a.want, HIT * PAGE));
	}
	check_device(&t->a, self->map_a);
	check_broken(t, 0, 0);
	ASSERT_EQ(PAGE, pwrite(t->a.fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
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
	ASSERT_EQ(PAGE, pwrite(t->a.fd, t->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_map(&t->a, self->map_a);
	check_device(&t->a, self->map_a);
	check_broken(t, HIT, HIT + 1);
}

MANUAL_TEST_MAIN
