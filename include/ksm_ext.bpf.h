/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a policy can ask the kernel to do.
 *
 * Include this after vmlinux.h, which brings the types (struct ksm_ext_ops,
 * struct ksm_ext_file_stat, ...).  The verbs are kfuncs of mm/ksm_ext in the
 * series under kernel-patches/, where they are defined and documented in full.
 * None of this is a stable interface.
 *
 * Units everywhere: a file is named by the 64-bit id that the kernel gave it,
 * which is never used again for another file; an index counts pages of
 * PAGE_SIZE from the start of the file; nr counts pages.  A file id is a plain
 * number: there is nothing to acquire, to release or to keep alive.
 *
 * All verbs may sleep, so they are for the sleepable members of a policy
 * (SEC("struct_ops.s/...")) and for SEC("syscall") programs.  Those that only
 * tell facts (ksm_ext_file_*() and ksm_ext_page_info()) are for programs
 * SEC("iter.s/ksm_ext") too, which get a struct ksm_ext_alias_info for each
 * shared page.  All say
 * -ECANCELED when the scan that calls them has to end: its time is over,
 * another policy took over, or somebody wrote to "run".
 */
#ifndef __KSM_EXT_BPF_H
#define __KSM_EXT_BPF_H

#include <asm-generic/errno.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "ksm_ext_domain.h"

/**
 * ksm_ext_discover() - give ids to files that came into memory
 *
 * Looks for regular files with cached pages, on the file systems that ksm_ext
 * supports, and gives an id to those that have none yet.
 *
 * Return: the highest id given so far, or -ECANCELED.
 */
extern s64 ksm_ext_discover(void) __ksym;

/*
 * Walk of the known files with an id above @after, in order of id, up to the
 * highest one that was known when the walk began:
 *
 *	u64 *id;
 *
 *	bpf_for_each(ksm_ext_file, id, after) { ... *id ... }
 *
 * It also ends when the scan has to end.
 */
extern int bpf_iter_ksm_ext_file_new(struct bpf_iter_ksm_ext_file *it,
				     u64 after) __ksym;
extern u64 *
bpf_iter_ksm_ext_file_next(struct bpf_iter_ksm_ext_file *it) __ksym;
extern void
bpf_iter_ksm_ext_file_destroy(struct bpf_iter_ksm_ext_file *it) __ksym;

/**
 * ksm_ext_file_stat() - facts about a file, as of now
 * @file:	id of the file
 * @st:		filled in
 * @st__sz:	sizeof(*st)
 *
 * Return: 0, or -ENOENT (file left memory), -EBUSY (its file system is being
 * unmounted or frozen), -EINVAL, -ECANCELED.
 */
extern int ksm_ext_file_stat(u64 file, struct ksm_ext_file_stat *st,
			     u32 st__sz) __ksym;

/**
 * ksm_ext_file_name() - last component of a path of the file
 * @file:	id of the file
 * @buf:	filled in, NUL-terminated, the name cut to fit
 * @buf__sz:	size of @buf
 *
 * Return: length of the whole name, or -ENOENT when the file left memory or
 * has no name, or another errno as for ksm_ext_file_stat().
 */
extern int ksm_ext_file_name(u64 file, char *buf, u32 buf__sz) __ksym;

/**
 * ksm_ext_hash() - hash consecutive cached pages
 * @file:	id of the file
 * @index:	first page
 * @hashes:	filled in, one for each page; 0 where there is nothing to merge
 *		(not cached, dirty, under writeback, ...)
 * @hashes__sz:	size of @hashes in bytes: 8 for each of 1..KSM_EXT_MAX_RUN pages
 *
 * A hash is a hint, never a proof: merging compares all bytes.  A page that is
 * shared already has the hash of its root.  KSM_EXT_HASH_ZEROS stands for pages
 * of zeros, which all domains but 0 may share.
 *
 * Return: number of pages with a hash, or an errno as for ksm_ext_file_stat().
 */
extern int ksm_ext_hash(u64 file, u64 index, u64 *hashes,
			u32 hashes__sz) __ksym;

/**
 * ksm_ext_merge() - make pages of one file share those of another
 * @dst:	id of the file that has the pages to share
 * @dst_index:	first of them
 * @src:	id of the file that shall give up its own copies; may be @dst
 * @src_index:	first of these
 * @nr:		how many pairs, 1..KSM_EXT_MAX_RUN
 *
 * Return: how many pairs from the front share a page now (it stops at the
 * first that can not; pairs that shared before count), or why not even the
 * first does:
 *
 * * -ENOENT:		a file left memory
 * * -ENODATA:		a page is not cached
 * * -EILSEQ:		the bytes differ
 * * -EXDEV:		the files are in different domains
 * * -EPERM:		a file is in domain 0
 * * -EOPNOTSUPP:	a file is not eligible
 * * -EBUSY:		dirty, locked, mlocked, pinned, ...: try later
 * * -EAGAIN:		the pages of a file were broken by writes too often of
 *			late: try in some seconds (scans only)
 * * -EMLINK:		the root of the @dst page is full: let the @src page be
 *			the next one to share
 * * -EINVAL:		nonsense arguments
 * * -ENOMEM:		no memory
 * * -ECANCELED:	no policy, stopped, or this policy is out of charge
 */
extern int ksm_ext_merge(u64 dst, u64 dst_index, u64 src, u64 src_index,
			 u32 nr) __ksym;

/**
 * ksm_ext_unmerge() - give pages their own copies again
 * @file:	id of the file
 * @index:	first page
 * @nr:		how many pages, 1..KSM_EXT_MAX_RUN
 *
 * Return: how many were shared, or an errno as for ksm_ext_file_stat().
 */
extern int ksm_ext_unmerge(u64 file, u64 index, u32 nr) __ksym;

/**
 * ksm_ext_file_lookup() - find a known file
 * @dev:	as struct ksm_ext_file_stat has it
 * @ino:	inode number
 * @generation:	inode generation, 0 for any
 *
 * Looks at all known files: for people who ask, not for every page.  On btrfs
 * several may fit, files of different subvolumes: this is the one with the
 * lowest id.
 *
 * Return: the id, or -ENOENT (see ksm_ext_discover()), -ECANCELED.
 */
extern s64 ksm_ext_file_lookup(u32 dev, u64 ino, u32 generation) __ksym;

/**
 * ksm_ext_file_fd() - the id of an open file
 * @fd:		file descriptor of the task that runs this SEC("syscall") program
 *
 * Gives it one, if it has none.  Unlike ksm_ext_file_lookup() it finds the
 * very file, on btrfs too.
 *
 * Return: the id, or -EBADF, -EOPNOTSUPP (a file that is never merged),
 * -ENOMEM, -ECANCELED.
 */
extern s64 ksm_ext_file_fd(int fd) __ksym;

/**
 * ksm_ext_file_path() - path of a file within its file system
 * @file:	id of the file
 * @buf:	filled in, NUL-terminated, the path cut to fit
 * @buf__sz:	size of @buf
 *
 * One of the paths, if the file has several.
 *
 * Return: length of the whole path, or -ENOENT when the file left memory or
 * has no name, or -ENAMETOOLONG, or another errno as for ksm_ext_file_stat().
 */
extern int ksm_ext_file_path(u64 file, char *buf, u32 buf__sz) __ksym;

/**
 * ksm_ext_page_info() - facts about one page, as of now
 * @file:	id of the file
 * @index:	which page
 * @info:	filled in
 * @info__sz:	sizeof(*info)
 *
 * Return: 0, or an errno as for ksm_ext_file_stat().
 */
extern int ksm_ext_page_info(u64 file, u64 index,
			     struct ksm_ext_page_info *info,
			     u32 info__sz) __ksym;

/**
 * ksm_ext_file_domain() - the trust domain that the policy in charge has a file in
 * @file:	id of the file
 * @domain:	filled in; 0 if the policy never merges this file
 *
 * Return: 0, -ESRCH when no policy is in charge, or another errno as for
 * ksm_ext_file_stat().
 */
extern int ksm_ext_file_domain(u64 file, u64 *domain) __ksym __weak;

/*
 * Walk of the files of which pages were just read, for scans of policies with
 * KSM_EXT_EVENTS in their flags:
 *
 *	u64 *id;
 *
 *	bpf_for_each(ksm_ext_fresh, id) { ... *id ... }
 *
 * The file need not have been known before.  It is not handed out again until
 * more of its pages are read.
 */
extern int bpf_iter_ksm_ext_fresh_new(struct bpf_iter_ksm_ext_fresh *it) __ksym;
extern u64 *
bpf_iter_ksm_ext_fresh_next(struct bpf_iter_ksm_ext_fresh *it) __ksym;
extern void
bpf_iter_ksm_ext_fresh_destroy(struct bpf_iter_ksm_ext_fresh *it) __ksym;

/* Behind ksm_ext_exit() and ksm_ext_dump() */
extern int ksm_ext_exit_bstr(s32 code, const char *fmt__str,
			     unsigned long long *data, u32 data__sz) __ksym;
extern int ksm_ext_dump_bstr(const char *fmt__str, unsigned long long *data,
			     u32 data__sz) __ksym;

#define __ksm_ext_bstr(fmt, args...)					\
	static const char ___fmt[] = fmt;				\
	unsigned long long ___param[___bpf_narg(args) ?: 1] = {};	\
									\
	_Pragma("GCC diagnostic push")					\
	_Pragma("GCC diagnostic ignored \"-Wint-conversion\"")		\
	___bpf_fill(___param, args);					\
	_Pragma("GCC diagnostic pop")

/**
 * ksm_ext_exit() - let the policy that runs be ejected
 * @code:	a number for struct ksm_ext_exit_info.code
 * @fmt:	format of a message for people, as of bpf_snprintf(); a literal
 *
 * For scan, and for what is called in it: domain, merged, broken.  The verbs
 * say -ECANCELED from here on: return.
 *
 * Evaluates to 0, or -EPERM for others than a scan, -EINVAL for a bad format.
 */
#define ksm_ext_exit(code, fmt, args...)				\
({									\
	__ksm_ext_bstr(fmt, args);					\
	ksm_ext_exit_bstr(code, ___fmt, ___param, sizeof(___param));	\
})

/**
 * ksm_ext_dump() - add to what is known of the policy's end
 * @fmt:	format, as of bpf_snprintf(); a literal
 *
 * For dump only.  What it prints is cut at KSM_EXT_DUMP_LEN, and can be read in
 * /sys/kernel/mm/ksm_ext/exit_dump.
 *
 * Evaluates to 0, or -EPERM for others than dump, -ENOSPC if it was cut,
 * -EINVAL for a bad format.
 */
#define ksm_ext_dump(fmt, args...)					\
({									\
	__ksm_ext_bstr(fmt, args);					\
	ksm_ext_dump_bstr(___fmt, ___param, sizeof(___param));		\
})

/**
 * ksm_ext_owner_domain() - the trust domain that the policies here use
 * @file:	facts about the file
 *
 * Where a file system is mounted with other ids, its owner is not who @file
 * says: then only files that all may read are merged.
 *
 * Return: as ksm_ext_domain_of() does, which says why.
 */
static __always_inline u64
ksm_ext_owner_domain(const struct ksm_ext_file_stat *file)
{
	if ((file->flags & KSM_EXT_FILE_IDMAPPED) && !(file->mode & 0004))
		return 0;
	return ksm_ext_domain_of(file->mode, file->uid, file->gid);
}

#endif /* __KSM_EXT_BPF_H */
