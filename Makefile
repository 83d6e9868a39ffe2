# SPDX-License-Identifier: GPL-2.0
#
# Kernel and tools are built by kernel-patches/build.sh, outside of the clone;
# everything else is built here, into build/.

MAKEFLAGS += -rR --no-print-directory
.DELETE_ON_ERROR:
.SECONDARY:

CLANG := clang-19
CC := ccache gcc
CONFIG := default
Q := $(if $(filter 1,$(V)),,@)
export V CONFIG

# The guest's shell, not make, expands what is in a command.
ifdef RUN
override export RUN := $(value RUN)
endif

PREFIX := /usr/local
sbindir = $(PREFIX)/sbin
unitdir = $(PREFIX)/lib/systemd/system
mandir = $(PREFIX)/share/man
sysconfdir := /etc/ksm_ext

B := build
TOOLS := $B/tools
BPFTOOL := $(TOOLS)/bin/bpftool
LIBBPF := $(TOOLS)/lib/libbpf.a

WARN := -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror
CFLAGS := -O2 -g -std=gnu11 -D_GNU_SOURCE $(WARN) -MMD -MP \
	-Iinclude -I$(TOOLS)/include
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -Wall -Werror \
	-MMD -MP -Iinclude -I$B -I$(TOOLS)/include
TEST_CFLAGS := $(CFLAGS) -I$B/selftests \
	-isystem $B/linux/tools/testing/selftests
LDLIBS := $(LIBBPF) -lelf -lz -lcjson -lpthread
KSMX_LDLIBS := -lm -lncursesw -ltinfo -lsystemd -lxxhash

policies := $(patsubst bpf/%.bpf.c,$B/%.bpf.o,$(wildcard bpf/*.bpf.c))
loader := $(patsubst loader/%.c,$B/loader/%.o,$(wildcard loader/*.c))
ksmx := $(if $(loader),$B/ksmx)
man := $(patsubst docs/man/%.rst,$B/man/%,$(wildcard docs/man/*.rst))
test_bpf := $(patsubst selftests/bpf/%.bpf.c,$B/selftests/%,\
	$(wildcard selftests/bpf/*.bpf.c))
# Those named ksmx_* are loaded by ksmx, not by the test programs.
ksmx_objects := $(addsuffix .bpf.o,$(filter $B/selftests/ksmx_%,$(test_bpf)))
skels := $(addsuffix .skel.h,$(filter-out $B/selftests/ksmx_%,$(test_bpf))) \
	$B/selftests/all.skel.h
tests := $(patsubst selftests/%.c,$B/selftests/%,$(wildcard selftests/*.c))
benches := $(patsubst selftests/bench/%.c,$B/bench/%, \
	$(wildcard selftests/bench/*.c))
tutorial := $B/tutorial/twins.bpf.o
helpers := $(patsubst selftests/%.c,$B/%,$(wildcard selftests/run/*.c))

.PHONY: help
help:	## print this
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | \
		expand -t 16
	@echo "Variables: V=1 shows all commands; for those of vm: make vm-help"

.PHONY: run
run: all	## the main job: two container trees share their equal pages
	@selftests/run/run

# All tests on the plain kernel, and on the debug kernel on one file system
ifeq ($(origin CONFIG),file)
check_runs := default:ext4 default:xfs default:btrfs debug:ext4
else
check_runs := $(CONFIG):ext4 $(CONFIG):xfs $(CONFIG):btrfs
endif
ifdef FS
check_runs := $(filter %:$(FS),$(check_runs))
endif

.PHONY: check
check: all $(sort $(foreach r,$(check_runs),kernel-$(firstword $(subst :, ,$r))))
check:	## all tests, in virtual machines (TESTS= FS= CONFIG=)
	@selftests/vm/check $(check_runs)

.PHONY: check-fs
fs_names := $(or $(FS),$(shell sed -n 's/^\([a-z][^[:space:]]*\).*/\1/p' \
	selftests/vm/matrix))
check-fs: all kernel-$(CONFIG)
check-fs:	## the same on variants of file systems (FS="name...")
	@TESTS="$(or $(TESTS),break merge hooks paths)" selftests/vm/check \
		$(addprefix $(CONFIG):,$(fs_names))

.PHONY: check-all
check-all:	## every proof there is: a day (see selftests/check-all)
	@selftests/check-all $(M)

.PHONY: stress
stress: all kernel-$(CONFIG)
stress:	## fio and stress-ng on files that are merged (FS= CONFIG=)
	@selftests/stress/run $(or $(FS),ext4 xfs btrfs)

.PHONY: upstream
upstream: all kernel-$(CONFIG) kernel-$(or $(BASE),pristine)
upstream:	## the kernel's own mm tests, with the series and without (BASE=)
	@selftests/upstream/run

.PHONY: bench
bench: all kernel-default kernel-off $(benches)
bench:	## measure, and print tables (OUT=docs/benchmarks.md)
	@selftests/bench/bench

.PHONY: fresh
fresh: all kernel-$(CONFIG) $B/bench/fresh
fresh:	## are 99 of 100 files merged within 50 ms after they are read?
	@ICOUNT=1 RUN="BENCH_ICOUNT=1 BENCH_P99_MS=50 build/bench/fresh" \
		TIMEOUT=$${TIMEOUT:-1800} selftests/vm/vm

.PHONY: guesses
guesses: all kernel-$(CONFIG) $B/bench/cost
guesses:	## does a first write tell what others' pages hold? (strict mode)
	@ICOUNT=1 RUN="setarch -R env BENCH_ICOUNT=1 BENCH_TOLD=1 build/bench/cost -t guesses" \
		selftests/vm/vm

.PHONY: picture
picture: all kernel-default
picture:	## docs/page-cache.svg: page cache over time, from a run (OUT=)
	@selftests/picture/picture $(or $(OUT),docs/page-cache.svg)

.PHONY: series-check
series-check:	## is each patch clean, does it build and boot? (STYLE=1)
	@kernel-patches/series-check.sh

# What to fuzz: twin.c explains
MODE := sequence
OPS := 1000000
.PHONY: fuzz
fuzz: all kernel-$(CONFIG)
fuzz:	## the twin fuzzer (MODE= OPS= SEED= THREADS= FS= CONFIG=)
	@KSM_EXT_OPS=$(OPS) KSM_EXT_SEED=$(SEED) \
		KSM_EXT_THREADS=$(or $(THREADS),$(KSM_EXT_THREADS)) \
		TIMEOUT=$${TIMEOUT:-0} RUN="build/selftests/twin -r twin.$(MODE)" \
		PASS="CONFIG CPUS DISK MEM MKFS MOUNT NUMA KSM_EXT_CONTROL KSM_EXT_OPS KSM_EXT_SEED KSM_EXT_STRICT KSM_EXT_THREADS KSM_EXT_TRACE" \
		selftests/vm/vm

.PHONY: mutate
mutate: all kernel-default
mutate:	## prove that tests can fail, hook by hook (M="name...")
	@selftests/mutate/run $(M)

.PHONY: crash
crash: kernel-$(CONFIG) policies ksmx $B/crash/crash
crash:	## kill machines that write to merged files (FS= ROUNDS= SEED=)
	@selftests/crash/run $(or $(FS),ext4 xfs btrfs)

.PHONY: model
model:	## check a model of the locking protocol, all orders of steps
	@selftests/model/run

.PHONY: vm
vm: all kernel-$(CONFIG)	## boot the kernel: a shell, or RUN='command'
	@selftests/vm/vm

.PHONY: vm-help
vm-help:	## variables that vm takes
	@selftests/vm/vm --help

.PHONY: vm-check
vm-check: kernel-default	## tests of the machine that runs the tests
	@selftests/vm/test-vm

.PHONY: install
install: policies ksmx man
install:	## install ksmx, policies, service, manuals (PREFIX= DESTDIR=)
	$Qinstall -d $(DESTDIR)$(sbindir) $(DESTDIR)$(PREFIX)/lib/ksm_ext \
		$(DESTDIR)$(unitdir) \
		$(DESTDIR)$(mandir)/man7 $(DESTDIR)$(mandir)/man8 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(sysconfdir)
	$Qinstall -s $B/ksmx $(DESTDIR)$(sbindir)
	$Qinstall -m 644 $(policies) $(DESTDIR)$(PREFIX)/lib/ksm_ext
	$Qinstall -m 644 $(filter %.7,$(man)) $(DESTDIR)$(mandir)/man7
	$Qinstall -m 644 $(filter %.8,$(man)) $(DESTDIR)$(mandir)/man8
	$Qinstall -m 644 loader/bash-completion \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ksmx
	$Qsed 's,@sbindir@,$(sbindir),' loader/systemd/ksm_ext.service \
		>$(DESTDIR)$(unitdir)/ksm_ext.service
	$Q[ -e $(DESTDIR)$(sysconfdir)/ksm_ext.conf ] || \
		install -m 644 loader/systemd/ksm_ext.conf \
			$(DESTDIR)$(sysconfdir)
	@echo "  INSTALL  $(DESTDIR)$(sbindir)/ksmx"

.PHONY: deb
deb: kernel-default policies ksmx man
deb:	## Debian packages of all that and of the kernel (KCONFIG=)
	@loader/make-deb $B/deb
	@kernel-patches/deb.sh $B/deb
	@ls $B/deb/*.deb

.PHONY: deb-check
deb-check: deb $(ksmx_objects)
deb-check:	## install them into Debian 12, boot that, use the service
	@selftests/deb/run $B/deb

.PHONY: all
all: kernel policies ksmx man selftests	## build everything

.PHONY: kernel
kernel: kernel-$(CONFIG)	## build kernel and tools (CONFIG=)

.PHONY: policies ksmx man selftests
policies: $(policies)	## build bpf/ only
ksmx: $(ksmx)	## build loader/ only
man: $(man)	## build manual pages
selftests: $(tests) $(helpers) $(ksmx_objects) $(tutorial)
selftests:	## build selftests/ only

.PHONY: clean
clean:	## remove build/; downloads and kernels stay cached
	$Qrm -rf $B

.PHONY: FORCE
kernel-%: FORCE
	$Qkernel-patches/build.sh $*

# build.sh keeps the time stamps of what did not change.
$B/vmlinux.h: kernel-default
	@:

$B/%.bpf.o: bpf/%.bpf.c $B/vmlinux.h
	@echo "  BPF      $@"
	$Q$(CLANG) $(BPF_CFLAGS) -c $< -o $@

# The program that the tutorial shows; it promises fewer than 40 lines.
$B/tutorial/%.bpf.c: docs/tutorial.md
	@mkdir -p $(@D)
	$Qawk '/^```c$$/ { code = 1; next } /^```$$/ { code = 0 } \
		code { print; lines += NF > 0 } \
		END { exit lines < 10 || lines >= 40 }' $< >$@

$B/tutorial/%.bpf.o: $B/tutorial/%.bpf.c $B/vmlinux.h
	@echo "  BPF      $@"
	$Q$(CLANG) $(BPF_CFLAGS) -c $< -o $@

$B/loader/%.bpf.o: loader/bpf/%.bpf.c $B/vmlinux.h
	@echo "  BPF      $@"
	@mkdir -p $(@D)
	$Q$(CLANG) $(BPF_CFLAGS) -c $< -o $@

$B/loader/%.skel.h: $B/loader/%.bpf.o
	@echo "  SKEL     $@"
	$Q$(BPFTOOL) gen skeleton $< name $* >$@

$B/loader/look.o: CFLAGS += -I$B/loader
$B/loader/look.o: $B/loader/look.skel.h

$B/loader/%.o: loader/%.c $B/vmlinux.h
	@echo "  CC       $@"
	@mkdir -p $(@D)
	$Q$(CC) $(CFLAGS) -isystem $B/linux/tools/include/uapi -c $< -o $@

$B/ksmx: $(loader)
	@echo "  LD       $@"
	$Q$(CC) $^ $(LDLIBS) $(KSMX_LDLIBS) -o $@

$B/man/%: docs/man/%.rst docs/man/make-page docs/benchmarks.md $B/ksmx $(policies)
	@echo "  MAN      $@"
	@mkdir -p $(@D)
	$Qdocs/man/make-page $< $B/ksmx >$@

$B/selftests/%.bpf.o: selftests/bpf/%.bpf.c $B/vmlinux.h
	@echo "  BPF      $@"
	@mkdir -p $(@D)
	$Q$(CLANG) $(BPF_CFLAGS) -c $< -o $@

$B/selftests/%.skel.h: $B/selftests/%.bpf.o
	@echo "  SKEL     $@"
	$Q$(BPFTOOL) gen skeleton $< name $(notdir $*) >$@

$B/selftests/race: LDLIBS += -laio
$B/selftests/paths: LDLIBS += -laio -luring
$B/selftests/mm: LDLIBS += -luring
$B/selftests/twin: LDLIBS += -laio -luring

$B/selftests/all.skel.h: $B/all.bpf.o
	@echo "  SKEL     $@"
	@mkdir -p $(@D)
	$Q$(BPFTOOL) gen skeleton $< name all >$@

$B/selftests/%: selftests/%.c $(skels) $B/vmlinux.h
	@echo "  TEST     $@"
	@mkdir -p $(@D)
	$Q$(CC) $(TEST_CFLAGS) $< $(LDLIBS) -o $@

$B/bench/%: selftests/bench/%.c $(skels) $B/vmlinux.h
	@echo "  CC       $@"
	@mkdir -p $(@D)
	$Q$(CC) $(TEST_CFLAGS) $< $(LDLIBS) -lxxhash -lm -o $@

$B/crash/crash: selftests/crash/crash.c
	@echo "  CC       $@"
	@mkdir -p $(@D)
	$Q$(CC) $(CFLAGS) $< -lpthread -o $@

$B/run/%: selftests/run/%.c $B/vmlinux.h
	@echo "  CC       $@"
	@mkdir -p $(@D)
	$Q$(CC) $(CFLAGS) $< -lxxhash -o $@

-include $(wildcard $B/*.d $B/*/*.d)
