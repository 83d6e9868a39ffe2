// SPDX-License-Identifier: GPL-2.0
/*
 * What the running kernel offers, and what is missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/magic.h>

#include "ksmx.h"

/* Return: whether there is such a file; @buf gets it, less its last newline. */
bool sysfs_read(const char *name, char *buf, size_t size)
{
	char path[256];
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), SYSFS "/%s", name);
	f = fopen(path, "re");
	if (!f)
		return false;
	n = fread(buf, 1, size - 1, f);
	fclose(f);
	if (n && buf[n - 1] == '\n')
		n--;
	buf[n] = '\0';
	return true;
}

/* Return: 0 or a negative errno. */
int sysfs_write(const char *name, const char *value)
{
	char path[256];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), SYSFS "/%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = write(fd, value, strlen(value));
	n = n < 0 ? -errno : 0;
	close(fd);
	return n;
}

/* Return: KSMX_OK on a kernel with ksm_ext. */
int check_support(void)
{
	if (access(SYSFS, F_OK))
		return fail(KSMX_NO_SUPPORT,
			    "no ksm_ext in this kernel: boot a patched one with CONFIG_KSM_EXT=y");
	return KSMX_OK;
}

/* Return: whether this process may do what @cap is for. */
bool capable(int cap)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};

	if (syscall(SYS_capget, &head, data))
		return false;
	return data[CAP_TO_INDEX(cap)].effective & CAP_TO_MASK(cap);
}

/* Types of the running kernel, read once; NULL if it has none. */
const struct btf *kernel_btf(void)
{
	static struct btf *btf;

	if (!btf)
		btf = btf__load_vmlinux_btf();
	return btf;
}

/* Return: KSMX_OK if this user may see, change and end what is pinned. */
int check_pins(void)
{
	struct statfs fs;
	int ret;

	ret = check_support();
	if (ret)
		return ret;

	if (!capable(CAP_SYS_ADMIN) &&
	    !(capable(CAP_BPF) && capable(CAP_PERFMON)))
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted: be root, or have CAP_BPF, CAP_PERFMON and own " BPFFS);

	if (statfs(BPFFS, &fs) || fs.f_type != BPF_FS_MAGIC)
		return fail(KSMX_NO_SUPPORT,
			    "no bpf file system: mount -t bpf bpf " BPFFS);
	return KSMX_OK;
}

/* Return: KSMX_OK if policies can be loaded, too. */
int check_loadable(void)
{
	int ret;

	ret = check_pins();
	if (ret)
		return ret;
	if (!kernel_btf())
		return fail(KSMX_NO_SUPPORT,
			    "no BTF in this kernel: build it with CONFIG_DEBUG_INFO_BTF=y");
	if (btf__find_by_name_kind(kernel_btf(), "ksm_ext_ops",
				   BTF_KIND_STRUCT) < 0)
		return fail(KSMX_NO_SUPPORT,
			    "this kernel takes no policies: build it with CONFIG_BPF_JIT=y");
	return KSMX_OK;
}
