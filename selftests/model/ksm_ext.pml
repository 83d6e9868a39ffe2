/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The protocol of mm/ksm_ext: two pages of two files, two roots, three threads.
 *
 * Spin starts from every state that the two pages can be in while all is quiet,
 * lets each thread do a number of operations of its group (G0 to G2, N0 to N2),
 * and looks at all orders of all their steps.  selftests/model/run has the
 * groups, and the faults that are put in with -DBUG_...
 *
 * A step, that is one atomic or d_step, is one access to what others may look
 * at without a lock: a slot, alias->root, root->folio, a reference count, a
 * page table entry, a TLB entry, a folio lock.  Several accesses are one step
 * where no other thread can tell, that is
 *  - what the folio lock protects and only holders of that look at: the list
 *    of a root, folio->private, folio->mapping;
 *  - what happens under one hold of a page table lock;
 *  - the load of a slot and that of alias->root: the latter changes only while
 *    the former does not;
 *  - a folio lock and what is verified at once under it;
 *  - rcu_read_lock() with the first load after it, rcu_read_unlock() with the
 *    last one: memory is freed as early as it can be.
 *
 * What stands for what:
 *   lock		ksm_ext_lock(), ksm_ext_verify()
 *   brk, MOVE_BACK	ksm_ext_break(), ksm_ext_move_back()
 *   drop		ksm_ext_drop(), ksm_ext_empty_slot()
 *   FREE_ROOT		ksm_ext_free_root()
 *   MERGE		ksm_ext_merge_pages(): PAGE_GET and ISOLATE are its
 *			ksm_ext_page_get() and ksm_ext_page_isolate(), REPLACE,
 *			MAKE_ROOT, JOIN and MOVE those of alias.c
 *   ZAP		unmap_mapping_pages(), unmap_mapping_folio()
 *   add		filemap_add_folio(), and ->read_folio()
 *   GET_ENTRY		filemap_get_entry()
 *   READ		filemap_read(), ksm_ext_get_folio(); or a reader that
 *			does not know aliases
 *   FAULT_AROUND	filemap_map_pages(), ksm_ext_trylock_folio()
 *   fault		filemap_fault(), finish_fault(), do_shared_fault()
 *   MKWRITE		->page_mkwrite()
 *   MREAD, MWRITE	a load and a store of a process, with their faults
 *   WRITE		write(2), of a part of the page
 *   WRITEBACK		->writepages()
 *   LONGPIN		pin_user_pages(FOLL_LONGTERM), ksm_ext_unshare()
 *   WRITEPIN		pin_user_pages_fast(FOLL_WRITE), and a device writes
 *   DONTNEED		madvise(MADV_DONTNEED)
 *   PUNCH		what takes i_rwsem and invalidate_lock and changes the
 *			disk: hole punch, truncation, collapse, reflink
 *   DIRECT		a direct write: invalidate_inode_pages2_range()
 *   RECLAIM		shrink_folio_list(), ksm_ext_release_folio()
 *   MIGRATE		migrate_pages(), ksm_ext_migrate_folio()
 *
 * Left out:
 *  - Weak memory.  Steps are sequentially consistent.
 *  - i_pages locks: each change of a slot is one step, what else such a section
 *    does is protected by the folio lock or frozen references, and nobody waits
 *    for anything in it.  The same goes for i_mmap_rwsem and page table locks.
 *  - In MERGE ksm_ext_promising(), a guess: what comes after it decides.
 *  - A page has one bit of contents, which writes flip: a write to the copy of
 *    an old page shows.  A file has one page, and one process maps it, whose
 *    one TLB entry outlives the page table entry until somebody flushes.
 *  - A direct write to a page that is written to through a mapping as well:
 *    only page 0 has the former and only page 1 the latter if there are both.
 *  - Large folios: a root of several pages and its aliases of the same order,
 *    a copy or a drop of all of them, partial truncation, and the split of a
 *    file's folio before one of its pages is merged.
 *  - Strict mode: roots made with one alias only (ksm_ext_fake()), their
 *    exchange of folios (ksm_ext_renew(): MIGRATE by the holder of the root's
 *    lock, with a zap instead of migration entries), and roots whose last alias
 *    has left, which stay until ksm_ext_reap().
 *  - Memory failure and ksm_ext_disband(), shadows, max_page_sharing, domains,
 *    and the end of an inode.
 *  - munmap() that has taken the VMA from the file and has not flushed yet.
 */

#define NF 6			/* folios; 0 is none */
#define NA 4			/* aliases */
#define NR 3			/* roots: two, and one that RCU keeps */
#define NO 8			/* aliases and roots: 0-3, 5-7 */

/* What groups are made of */
#define M 1			/* merge, unmerge */
#define R 2			/* read(2), long-term pin */
#define L 4			/* load */
#define W 8			/* write(2) */
#define S 16			/* store */
#define P 32			/* device write, MADV_DONTNEED, writeback */
#define T 64			/* hole punch, direct write */
#define K 128			/* reclaim, migration */
#ifndef G0
#define G0 M
#define G1 R
#define G2 W
#endif
#ifndef N0
#define N0 1
#define N1 1
#define N2 1
#endif
#define ANY (G0 | G1 | G2)

/* A slot: 0, a folio, or ALIAS + an alias */
#define ALIAS 16
byte slot[2];
byte nrpages[2];		/* mapping->nrpages */

/* Folios.  Free: no reference and no lock.  Frozen: no reference, locked. */
byte ref[NF + 1];
byte lk[NF + 1];		/* 0, or 1 + the thread that holds it */
byte map[NF + 1];		/* ->mapping: 0, 1 + file, or ROOT + root */
byte prv[NF + 1];		/* ->private: ROOT + root */
bit upt[NF + 1];
bit drt[NF + 1];
bit wb[NF + 1];
bit val[NF + 1];		/* the bytes */
byte iso;			/* mask: who is isolated from the LRU */
#define ROOT 4			/* roots are ROOT + 1 and up */
#define is_root(f) (map[f] >= ROOT)

/* Aliases 0 to NA - 1, and roots: 0 free, LIVE, or whom kfree_rcu() awaits */
#define LIVE 128
byte st[NO];
byte al_root[NO];
byte rt_folio[NO];
byte rt_list[NO];		/* mask of aliases */
byte rcu;			/* mask of threads in rcu_read_lock() */
byte waiting;			/* how many kfree_rcu() has not freed yet */
#define root_of(entry) al_root[(entry) - ALIAS]
#define bit_of(entry) (1 << ((entry) - ALIAS))

/* Page tables */
#define PTE_W 16
#define PTE_D 32
#define PTE_M 64		/* migration entry */
#define F_OF(p) ((p) & 15)
byte pte[2];
byte tlb[2];
#define present(p) ((p) && !((p) & PTE_M))
#define maps(s, f) (present(pte[s]) && F_OF(pte[s]) == (f))
#define mapcount(f) (maps(0, f) + maps(1, f))

/* Locks of the files */
byte i_rwsem[2];
byte inval_ex[2], inval_sh[2];

/* What a file holds, and what readers may see */
bit disk[2];
bit cur[2];
bit alt[2];			/* PUNCH, DIRECT: the other is right too */
byte rd[3];			/* per thread: mask of values, 4 << file */
bit van[2];			/* see stale_by_reclaim() */
byte busy;

#define me (t + 1)

/* ---- what has to hold ---- */

#define leads_to_root(s, f) \
	(slot[s] >= ALIAS && root_of(slot[s]) == map[f])

/* Rules 1 to 3, for a slot that this thread may look at */
#define slot_ok(s) ( \
	(slot[s] < ALIAS || \
	 (st[slot[s] - ALIAS] == LIVE && \
	  (rt_list[root_of(slot[s])] & bit_of(slot[s])))) && \
	(!present(pte[s]) || !is_root(F_OF(pte[s])) || \
	 (!(pte[s] & (PTE_W | PTE_D)) && \
	  leads_to_root(s, F_OF(pte[s])))) && \
	(!tlb[s] || !is_root(F_OF(tlb[s])) || \
	 (!(tlb[s] & PTE_W) && leads_to_root(s, F_OF(tlb[s])))))

#define quiet_folio(f) ( \
	!lk[f] && !wb[f] && \
	ref[f] == (map[f] != 0) + (prv[f] != 0) + mapcount(f) && \
	(!map[f] || is_root(f) || slot[map[f] - 1] == f) && \
	(!is_root(f) || (upt[f] && !drt[f] && st[map[f]] == LIVE)) && \
	(!prv[f] || (map[f] == prv[f] && rt_folio[prv[f]] == f && \
		     rt_list[prv[f]])))
#define quiet_alias(a) ( \
	!st[a] || (st[a] == LIVE && \
		   (slot[0] == ALIAS + a || slot[1] == ALIAS + a) && \
		   (rt_list[al_root[a]] & (1 << a)) && rt_folio[al_root[a]]))
/* One that reclaim has emptied only is its folio's place. */
#define quiet_root(r) ( \
	!st[r] || \
	(st[r] == LIVE && \
	 (rt_folio[r] || map[1] == r || map[2] == r || map[3] == r || \
	  map[4] == r || map[5] == r || map[6] == r)))
#define bytes_behind(s) \
	val[(slot[s] >= ALIAS -> rt_folio[root_of(slot[s])] : slot[s])]
#define quiet_slot(s) ( \
	slot_ok(s) && nrpages[s] == (slot[s] != 0) && \
	!alt[s] && !i_rwsem[s] && !inval_ex[s] && !inval_sh[s] && \
	(!slot[s] || bytes_behind(s) == cur[s]) && \
	((slot[s] && slot[s] < ALIAS) || disk[s] == cur[s]) && \
	(!slot[s] || slot[s] >= ALIAS || \
	 (map[slot[s]] == s + 1 && upt[slot[s]] && \
	  (drt[slot[s]] || disk[s] == cur[s]))) && \
	(!present(pte[s]) || is_root(F_OF(pte[s])) || \
	 slot[s] == F_OF(pte[s])))

/* All is quiet: every reference, alias and root is accounted for. */
inline check_quiet()
{
	assert(!rcu && !iso);
	assert(quiet_folio(1) && quiet_folio(2) && quiet_folio(3));
	assert(quiet_folio(4) && quiet_folio(5) && quiet_folio(6));
	assert(quiet_alias(0) && quiet_alias(1));
	assert(quiet_alias(2) && quiet_alias(3));
	assert(quiet_root(5) && quiet_root(6) && quiet_root(7));
	assert(quiet_slot(0) && quiet_slot(1))
}

/* A reader starts, and what it may see from then on */
inline read_begin()
{
	rd[t] = (4 << s) | (alt[s] -> 3 : (1 << cur[s]))
}

inline readers_may_see(mask)
{
	rd[0] = rd[0] | ((rd[0] & (4 << s)) -> (mask) : 0);
	rd[1] = rd[1] | ((rd[1] & (4 << s)) -> (mask) : 0);
	rd[2] = rd[2] | ((rd[2] & (4 << s)) -> (mask) : 0)
}

inline see(F)
{
	assert((ref[F] || lk[F]) && upt[F]);
	assert(rd[t] & (1 << val[F]));
	rd[t] = 0
}

/* New bytes; they are the file's if the folio still is */
inline store(F)
{
	assert((ref[F] || lk[F]) && !is_root(F));
	val[F] = !val[F];
	if
	:: slot[s] == F -> cur[s] = val[F]; readers_may_see(1 << cur[s])
	:: else
	fi
}

inline set_dirty(F)
{
	assert(!is_root(F));
	drt[F] = 1
}

/* ---- folios, memory, RCU ---- */

inline free_folio(F)
{
	assert(!lk[F] && !map[F] && !prv[F] && !wb[F] &&
	       !(iso & (1 << F)) && !mapcount(F) &&
	       F_OF(tlb[0]) != F && F_OF(tlb[1]) != F);
	upt[F] = 0;
	drt[F] = 0;
	val[F] = 0
}

inline put(F)
{
	assert(ref[F]);
	ref[F]--;
	if
	:: !ref[F] -> free_folio(F)
	:: else
	fi
}

inline unlock(F)
{
	assert(lk[F] == me);
	lk[F] = 0
}

inline unlock_put(F)
{
	d_step { unlock(F); put(F); F = 0 }
}

/* With a reference; 0 is -ENOMEM */
inline alloc(F)
{
	F = 1;
	do
	:: F <= NF && (ref[F] || lk[F]) -> F++
	:: else -> break
	od;
	F = (F > NF -> 0 : F);
	ref[F] = (F -> 1 : 0)
}

inline alloc_alias(A)
{
	A = 0;
	do
	:: A < NA && st[A] -> A++
	:: else -> break
	od;
	if
	:: A < NA -> st[A] = LIVE; A = A + ALIAS
	:: else -> A = 0
	fi
}

inline alloc_root(X)
{
	X = ROOT + 1;
	do
	:: X < NO && st[X] -> X++
	:: else -> break
	od;
	if
	:: X < NO -> st[X] = LIVE
	:: else -> X = 0
	fi
}

#ifdef BUG_NO_RCU
#define in_rcu 0
#else
#define in_rcu rcu
#endif

inline kfree_rcu(O)
{
	assert(st[O] == LIVE && !rt_list[O]);
	st[O] = in_rcu;
	waiting = waiting + (in_rcu != 0);
	al_root[O] = (in_rcu -> al_root[O] : 0);
	rt_folio[O] = 0
}

/* A grace period ends when all who were in it have left. */
inline rcu_exit()
{
	rcu = rcu & ~(1 << t);
	do
	:: waiting && i < NO ->
		if
		:: st[i] && st[i] != LIVE ->
			st[i] = st[i] & ~(1 << t);
			al_root[i] = (st[i] -> al_root[i] : 0);
			waiting = waiting - !st[i]
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0
}

inline rcu_load()
{
	rcu = rcu | (1 << t);
	e = slot[s];
	r = (e < ALIAS -> 0 : root_of(e))
}

/* ---- page tables ---- */

inline flush(Q)
{
	tlb[Q] = 0;
	van[Q] = 0
}

inline ZAP(Q)
{
	d_step {
		x = (present(pte[Q]) -> F_OF(pte[Q]) : 0);
		if
		:: x && (pte[Q] & PTE_D) -> set_dirty(x)
		:: else
		fi;
		pte[Q] = 0
	};
	d_step {
		flush(Q);
		if
		:: x -> put(x); x = 0
		:: else
		fi
	}
}

inline set_pte(F, BITS)
{
	if
	:: !pte[s] ->
		assert(lk[F] == me && upt[F]);
		pte[s] = F | (BITS);
		ref[F]++;
		assert(slot_ok(s))
	:: else
	fi
}

/* ---- lookup ---- */

#ifdef BUG_GET_NO_RECHECK
#define root_is_same 1
#else
#define root_is_same (rt_folio[r] == f)
#endif

/*
 * ksm_ext_get_folio(): of the root r behind the alias entry e that has just
 * been loaded, f gets a reference; or is 0
 */
inline get_folio()
{
	d_step {
		assert(st[r]);
		f = rt_folio[r]
	};
	d_step {
		if
#ifdef BUG_GET_NO_TRY
		:: f -> ref[f]++
#else
		:: f && ref[f] -> ref[f]++
#endif
		:: else -> f = 0
		fi
	};
	d_step {
		assert(st[e - ALIAS]);
		if
		:: f && (slot[s] != e || root_of(e) != r) -> put(f); f = 0
		:: else
		fi
	};
	d_step {
		assert(st[r]);
		if
		:: f && !root_is_same -> put(f); f = 0
		:: else
		fi
	}
}

/* To g, or 0; ent is what stands there if it is no folio */
inline GET_ENTRY()
{
	do
	:: atomic {
		rcu_load();
		if
		:: !e || e >= ALIAS ->
			ent = e; e = 0; r = 0; rcu_exit(); break
		:: e && e < ALIAS && ref[e] -> g = e; ref[e]++
		:: else
		fi
	   };
	   if
	   :: g -> atomic {
		if
		:: slot[s] == e -> e = 0; rcu_exit(); break
		:: else -> put(g); g = 0
		fi }
	   :: else
	   fi
	od
}

#ifdef BUG_LOCK_NO_VERIFY
#define verified(F) (slot[s] >= ALIAS)
#else
#define verified(F) same_root(F)
#endif
#define same_root(F) (slot[s] >= ALIAS && prv[F] && root_of(slot[s]) == prv[F])

/* ---- break and drop ---- */

/* Under the root's lock */
inline unlink(A)
{
	assert(rt_list[root_of(A)] & bit_of(A));
	rt_list[root_of(A)] = rt_list[root_of(A)] & ~bit_of(A)
}

inline FREE_ROOT(X, F)
{
	rt_folio[X] = 0;
	d_step {
		assert(prv[F] == X && map[F] == X);
		prv[F] = 0;
		map[F] = 0;
		put(F);
		put(F);
		kfree_rcu(X)
	}
}

#define only_one(mask) (!((mask) & ((mask) - 1)))

#ifdef BUG_MOVE_BACK_SHARED_REF
#define no_other_user(F) 1
#else
#define no_other_user(F) (ref[F] == 3)
#endif

/* ok: page Q has its folio F again, and alias A is gone */
inline MOVE_BACK(Q, A, F)
{
	d_step {
		ok = no_other_user(F);
		x = (ok -> ref[F] : 0);
		ref[F] = (ok -> 0 : ref[F])
	};
	if
	:: ok ->
		d_step { r = prv[F]; rt_folio[r] = 0 };
		d_step {
			prv[F] = 0;
			map[F] = Q + 1;
			slot[Q] = F;
			unlink(A);
			assert(slot_ok(Q))
		};
		d_step {
			ref[F] = x - 1;
			x = 0;
			kfree_rcu(r);
			kfree_rcu(A - ALIAS);
			A = 0;
			r = 0
		}
	:: else
	fi
}

/* Under the root's lock: no page table leads to it */
inline empty_slot(Q, A)
{
	slot[Q] = 0;
	nrpages[Q]--;
	unlink(A)
}

/* ---- the page cache ---- */

inline inval_lock()
{
	atomic { !inval_ex[s] -> inval_sh[s]++ }
}

inline inval_unlock()
{
	d_step { assert(inval_sh[s]); inval_sh[s]-- }
}

/* Under the folio's lock, not mapped any more */
inline remove_folio(Q, F)
{
	slot[Q] = 0;
	nrpages[Q]--;
	map[F] = 0
}

/*
 * Subroutines: what several operations call.  CALL leaves the place to go on
 * from, each subroutine's in a variable of its own, for none calls itself.
 */
#define CALL(what, n) what##_ret = n; goto what; what##n: what##_ret = 0

/*
 * in: s, and nowait for trylock.  out: alias a, and its root's folio f, locked
 */
inline lock_code()
{
	do
	:: atomic {
		rcu_load();
		if
		:: e < ALIAS -> e = 0; rcu_exit(); break
		:: else
		fi
	   };
	   get_folio();
	   if
	   :: f ->
		d_step { e = 0; r = 0; rcu_exit() };
		atomic {
			if
			:: !lk[f] && verified(f) ->
				lk[f] = me; a = slot[s]; break
			:: !lk[f] && !verified(f) -> put(f); f = 0
#ifndef BUG_MERGE_WAITS
			:: nowait && lk[f] -> put(f); f = 0; nowait = 2; break
#endif
			fi
		}
	   :: else
	   fi
	od;
	if
#if ANY & (M | R | W | L | S)
	:: lock_ret == 1 -> goto lock1
#endif
	:: lock_ret == 2 -> goto lock2
#if ANY & (L | S)
	:: lock_ret == 3 -> goto lock3
#endif
#if ANY & M
	:: lock_ret == 4 -> goto lock4
	:: lock_ret == 5 -> goto lock5
#endif
	fi
}

/* in: s.  out: g, locked; or 0, and nomem */
inline break_code()
{
	atomic { alloc(n); nomem = !n };
	if
	:: !nomem ->
		CALL(lock, 1);
		if
		:: !a -> d_step { put(n); n = 0 }
		:: else ->
#if defined(BUG_NO_ZAP)
#elif defined(BUG_ZAP_IF_MAPPED)
			if
			:: mapcount(f) -> ZAP(s)
			:: else
			fi;
#else
			ZAP(s);
#endif
			if
			:: only_one(rt_list[prv[f]]) -> MOVE_BACK(s, a, f)
			:: else
			fi;
			if
			:: ok -> d_step { put(n); n = 0; g = f; f = 0; ok = 0 }
			:: else ->
				d_step {
					/* Nobody knows the copy yet. */
					val[n] = val[f];
					upt[n] = 1;
					lk[n] = me;
					map[n] = s + 1;
					ref[n]++;
					slot[s] = n;
					r = root_of(a);
					unlink(a);
#ifndef BUG_NO_ZAP
					assert(slot_ok(s));
#endif
					g = n;
					n = 0
				};
#ifndef BUG_LEAK_ROOT
				if
				:: !rt_list[r] -> FREE_ROOT(r, f)
				:: else
				fi;
#endif
				d_step {
					r = 0;
					unlock(f);
					put(f);
					f = 0;
					kfree_rcu(a - ALIAS);
					a = 0
				}
			fi
		fi
	:: else
	fi;
	if
#if ANY & (L | S)
	:: brk_ret == 1 -> goto brk1
	:: brk_ret == 2 -> goto brk2
#endif
#if ANY & W
	:: brk_ret == 3 -> goto brk3
#endif
#if (ANY & R) && !defined(BUG_PIN_SHARED)
	:: brk_ret == 4 -> goto brk4
#endif
#if ANY & M
	:: brk_ret == 5 -> goto brk5
#endif
	fi
}

/* in: s */
inline drop_code()
{
	CALL(lock, 2);
	if
	:: a ->
#if !defined(BUG_DROP_NO_ZAP) && !defined(BUG_ZAP_AFTER)
		ZAP(s);
#endif
		d_step {
			r = root_of(a);
			empty_slot(s, a);
			kfree_rcu(a - ALIAS);
			a = 0;
#if !defined(BUG_DROP_NO_ZAP) && !defined(BUG_ZAP_AFTER)
			assert(slot_ok(s))
#endif
		};
#ifdef BUG_ZAP_AFTER
		ZAP(s);
#endif
		if
		:: !rt_list[r] -> FREE_ROOT(r, f)
		:: else
		fi;
		d_step { r = 0; unlock(f); put(f); f = 0 }
	:: else
	fi;
	if
#if ANY & (R | W | L | S)
	:: drop_ret == 1 -> goto drop1
#endif
#if ANY & T
	:: drop_ret == 2 -> goto drop2
#endif
#if ANY & M
	:: drop_ret == 3 -> goto drop3
#endif
	fi
}

/* in: s.  out: g, new, locked and filled from disk; or 0, and nomem */
inline add_code()
{
	atomic {
		alloc(g);
		nomem = !g;
		lk[g] = (g -> me : 0);
		ref[g] = (g -> 2 : 0);
		map[g] = (g -> s + 1 : 0)
	};
	do
	:: atomic {
		if
		:: !g -> break
		:: g && !slot[s] ->
			slot[s] = g;
			assert(slot_ok(s));
			break
#ifdef BUG_ADD_OVERWRITES
		:: g && slot[s] >= ALIAS -> slot[s] = g; nrpages[s]--; break
#else
		:: g && slot[s] >= ALIAS -> skip
#endif
		:: g && slot[s] && slot[s] < ALIAS ->
			/* -EEXIST */
			map[g] = 0; lk[g] = 0; put(g); put(g); g = 0;
			break
		fi
	   };
	   CALL(drop, 1)
	od;
	if
	:: g ->
		nrpages[s]++;
		d_step { val[g] = disk[s]; upt[g] = 1 }
	:: else
	fi;
	if
#if ANY & (L | S)
	:: add_ret == 1 -> goto add1
#endif
#if ANY & R
	:: add_ret == 2 -> goto add2
#endif
#if ANY & W
	:: add_ret == 3 -> goto add3
#endif
	fi
}

/* g, which this thread has a reference to, may be written to: locked, or 0 */
inline MKWRITE()
{
	inval_lock();
	atomic { !lk[g] -> lk[g] = me };
	d_step {
		if
		:: map[g] == s + 1 -> set_dirty(g)
		:: else -> unlock(g); put(g); g = 0
		fi
	};
	inval_unlock()
}

#ifdef BUG_FAULT_WRITE_MAPS_ROOT	/* of an fs without page_mkwrite() */
#define write_maps_root 1
#else
#define write_maps_root 0
#endif

/* in: s, and wr for a store to a shared mapping.  out: nomem */
inline fault_code()
{
	GET_ENTRY();
	if
	:: g -> ent = 0
	:: else ->
		ent = 0;
		if
		:: wr && !write_maps_root -> CALL(brk, 1); ent = (g != 0)
		:: !wr || write_maps_root ->
			CALL(lock, 3);
			d_step { g = f; f = 0; a = 0; ent = (g != 0) }
		fi
	fi;
	/* ent: g is locked and may be mapped */
	if
	:: nomem || ent
	:: else ->
		if
		:: !g -> inval_lock(); y = 1
		:: else
		fi;
		do
		:: g ->
			atomic { !lk[g] -> lk[g] = me };
			atomic {
				if
				:: map[g] == s + 1 -> assert(upt[g]); break
				:: else -> unlock(g); put(g); g = 0
				fi
			};
			if
			:: !y -> inval_lock(); y = 1
			:: else
			fi
		:: !g && nomem -> break
		:: !g && !nomem ->
			GET_ENTRY();
			if
			:: !g && ent -> ent = 0; CALL(brk, 2)
			:: !g && !ent -> CALL(add, 1)
			:: else
			fi;
			if
			:: g && lk[g] == me -> d_step { unlock(g) }
			:: else
			fi
		od;
		if
		:: y -> inval_unlock(); y = 0
		:: else
		fi
	fi;
	ent = 0;
	if
	:: g && !wr ->
		d_step { set_pte(g, 0); unlock(g); put(g); g = 0 }
	:: g && wr ->
#ifndef BUG_FAULT_WRITE_MAPS_ROOT
		d_step { unlock(g) };
		MKWRITE();
#endif
		if
		:: g ->
			d_step { set_pte(g, PTE_W | PTE_D) };
			d_step { set_dirty(g); unlock(g); put(g); g = 0 }
		:: else
		fi
	:: else
	fi;
	wr = 0;
	if
#if ANY & L
	:: fault_ret == 1 -> goto fault1
#endif
#if ANY & S
	:: fault_ret == 2 -> goto fault2
	:: fault_ret == 3 -> goto fault3
#endif
	fi
}

/* ---- what users do ---- */

inline READ()
{
	d_step { read_begin() };
	do
	:: atomic {
		rcu_load();
		if
		:: e && e < ALIAS && ref[e] -> f = e; ref[e]++
		:: else
		fi
	   };
	   if
	   :: e && e < ALIAS ->
		d_step {
			if
			:: f && slot[s] != e -> put(f); f = 0
			:: else
			fi;
			e = 0
		};
		if
		:: f && !upt[f] ->
			d_step { rcu_exit() };
			!lk[f] || upt[f];
			d_step { put(f); f = 0 }
		:: atomic { f && upt[f] -> rcu_exit(); break }
		:: else
		fi
	   :: e >= ALIAS ->
		get_folio();
		e = 0;
		r = 0;
		if
		:: atomic { f -> rcu_exit(); break }
		:: else
		fi
	   :: atomic { !e || e >= ALIAS -> e = 0; r = 0; rcu_exit() };
		inval_lock();
		CALL(add, 2);
		inval_unlock();
		if
		:: atomic { g -> unlock(g); f = g; g = 0; break }
		:: !g && nomem -> break
		:: else
		fi
	   fi
	od;
	atomic {
		if
		:: f -> see(f); put(f); f = 0
		:: else -> rd[t] = 0
		fi;
		nomem = 0
	}
}

#ifdef BUG_MAP_NO_VERIFY
#define verified_to_map(F) 1
#else
#define verified_to_map(F) (slot[s] == e && same_root(F))
#endif

inline FAULT_AROUND()
{
	d_step { rcu_load() };
	if
	:: !e
	:: e >= ALIAS ->
		get_folio();
		d_step {
			r = 0;
			g = f;
			f = 0;
			if
			:: g && !lk[g] && verified_to_map(g) -> lk[g] = me
			:: g && !(!lk[g] && verified_to_map(g)) ->
				put(g); g = 0
			:: else
			fi
		}
	:: e && e < ALIAS ->
		d_step {
			if
			:: !lk[e] && ref[e] -> g = e; ref[g]++
			:: else
			fi
		};
		d_step {
			if
			:: g && (slot[s] != e || lk[g]) -> put(g); g = 0
			:: g && slot[s] == e && !lk[g] -> lk[g] = me
			:: else
			fi
		};
		d_step {
			if
			:: g && (map[g] != s + 1 || !upt[g]) ->
				unlock(g); put(g); g = 0
			:: else
			fi
		}
	fi;
	e = 0;
	if
	:: g -> d_step { set_pte(g, 0); unlock(g); put(g); g = 0; rcu_exit() }
	:: else -> d_step { rcu_exit() }
	fi
}

inline MREAD()
{
	d_step { read_begin() };
	do
	:: atomic { tlb[s] ->
		if
		:: !van[s] -> see(F_OF(tlb[s]))
		:: else -> rd[t] = 0
		fi;
		break }
	:: atomic { !tlb[s] && present(pte[s]) -> tlb[s] = F_OF(pte[s]) }
	:: !tlb[s] && !pte[s] ->
		if
		:: FAULT_AROUND()
		:: CALL(fault, 1)
		fi;
		if
		:: nomem -> d_step { nomem = 0; rd[t] = 0 }; break
		:: else
		fi
	:: !tlb[s] && (pte[s] & PTE_M) -> !(pte[s] & PTE_M)
	od
}

/* Whether the store goes on to be one */
#define writable(p) ((p) & PTE_W)

inline MWRITE()
{
	do
	:: atomic { writable(tlb[s]) -> store(F_OF(tlb[s])); break }
	:: atomic { !writable(tlb[s]) && present(pte[s]) && writable(pte[s]) ->
		pte[s] = pte[s] | PTE_D;
		tlb[s] = pte[s] & ~PTE_D;
		van[s] = 0 }
	:: atomic { !writable(tlb[s]) && present(pte[s]) && !writable(pte[s]) ->
		/* wp_page_shared() */
		g = F_OF(pte[s]);
#ifndef BUG_WP_REUSE
		g = (is_root(g) -> 0 : g);
#endif
		ref[g] = (g -> ref[g] + 1 : 0) };
		if
		:: !g -> wr = 1; CALL(fault, 2)
		:: else ->
#ifdef BUG_WP_REUSE
			atomic { !lk[g] -> lk[g] = me };
#else
			MKWRITE();
#endif
			if
			:: g ->
				d_step {
					if
					:: pte[s] == g ->
						pte[s] = g | PTE_W | PTE_D;
						flush(s)
					:: else
					fi
				};
				d_step { set_dirty(g); unlock(g); put(g);
					 g = 0 }
			:: else
			fi
		fi;
		if
		:: nomem -> nomem = 0; break
		:: else
		fi
	:: !writable(tlb[s]) && !pte[s] ->
		wr = 1;
		CALL(fault, 3);
		if
		:: nomem -> nomem = 0; break
		:: else
		fi
	:: !writable(tlb[s]) && (pte[s] & PTE_M) -> !(pte[s] & PTE_M)
	od
}

inline WRITE()
{
	atomic { !i_rwsem[s] -> i_rwsem[s] = me };
	do
	:: GET_ENTRY();
	   if
	   :: g ->
		atomic { !lk[g] -> lk[g] = me };
		atomic {
			if
			:: map[g] == s + 1 -> break
			:: else -> unlock(g); put(g); g = 0
			fi
		}
	   :: !g && ent -> ent = 0; CALL(brk, 3)
	   :: !g && !ent -> CALL(add, 3)
	   fi;
	   if
	   :: g || nomem -> break
	   :: else
	   fi
	od;
	if
	:: g ->
		d_step {
			assert(lk[g] == me && slot[s] == g && map[g] == s + 1);
			assert(upt[g] && val[g] == cur[s]);
			store(g)
		};
		d_step { set_dirty(g); unlock(g); put(g); g = 0 }
	:: else
	fi;
	d_step { nomem = 0; i_rwsem[s] = 0 }
}

inline WRITEBACK()
{
	GET_ENTRY();
	ent = 0;
	if
	:: g ->
		atomic { !lk[g] -> lk[g] = me };
		if
		:: map[g] == s + 1 && drt[g] && !wb[g] ->
			/* folio_clear_dirty_for_io(), with folio_mkclean() */
			d_step { pte[s] = (maps(s, g) -> g : pte[s]) };
			d_step {
				tlb[s] = (F_OF(tlb[s]) == g -> 0 : tlb[s]);
				drt[g] = 0;
				wb[g] = 1;
				unlock(g)
			};
			d_step { disk[s] = val[g] };
			d_step { wb[g] = 0; put(g); g = 0 }
		:: else -> unlock_put(g)
		fi
	:: else
	fi
}

inline LONGPIN()
{
	do
	:: atomic { present(pte[s]) && !is_root(F_OF(pte[s])) ->
		g = F_OF(pte[s]); ref[g]++; break }
#ifdef BUG_PIN_SHARED
	:: atomic { present(pte[s]) && is_root(F_OF(pte[s])) ->
		g = F_OF(pte[s]); ref[g]++; break }
#else
	:: present(pte[s]) && is_root(F_OF(pte[s])) ->
		CALL(brk, 4);
		if
		:: g -> unlock_put(g)
		:: else
		fi;
		if
		:: nomem -> break
		:: else
		fi
#endif
	:: !pte[s] -> break
	:: pte[s] & PTE_M -> break
	od;
	nomem = 0;
	if
	:: g ->
		/* Truncation takes a page from under a pin; nothing else does. */
		d_step {
			assert(!is_root(g) || alt[s] || val[g] == cur[s]);
			assert(map[g] != s + 1 || alt[s] || val[g] == cur[s]);
			put(g);
			g = 0
		}
	:: else
	fi
}

inline WRITEPIN()
{
	x = pte[s];
	if
	:: present(x) && (x & PTE_W) ->
		d_step {
			g = F_OF(x);
			if
			:: ref[g] -> ref[g]++
			:: else -> g = 0
			fi
		};
		d_step {
			if
			:: g && pte[s] != x -> put(g); g = 0
			:: else
			fi;
			x = 0
		};
		if
		:: g ->
			d_step { store(g) };
			atomic { !lk[g] -> lk[g] = me };
			d_step { set_dirty(g); unlock(g); put(g); g = 0 }
		:: else
		fi
	:: else -> x = 0
	fi
}

/* ---- what changes the disk ---- */

inline change_begin()
{
	alt[s] = 1;
	readers_may_see(3)
}

inline change_end()
{
	cur[s] = disk[s];
	alt[s] = 0
}

/* The slot is empty after: truncate_inode_pages(), or if y is set, DIRECT's */
inline EMPTY()
{
	do
	:: GET_ENTRY();
	   if
	   :: !g && !ent -> break
#ifdef BUG_INVALIDATE_SKIPS
	   :: !g && ent && y -> ent = 0; break
#endif
#ifdef BUG_TRUNCATE_CLEARS
	   :: !g && ent && !y ->
		d_step { slot[s] = 0; nrpages[s]--; ent = 0 }
#endif
	   :: !g && ent -> ent = 0; CALL(drop, 2)
	   :: g ->
		atomic { !lk[g] -> lk[g] = me };
		if
		:: map[g] == s + 1 ->
			!wb[g];
			if
			:: mapcount(g) -> ZAP(s)
			:: else
			fi;
			d_step {
				assert(!y || !drt[g]);
				remove_folio(s, g);
				drt[g] = 0;
				put(g)
			}
		:: else
		fi;
		unlock_put(g)
	   fi
	od
}

/*
 * Hole punch; or if y is set a direct write, which does not keep readers out
 * and therefore empties the slot before and after.
 */
inline CHANGE()
{
	atomic { !i_rwsem[s] -> i_rwsem[s] = me };
	if
	:: y -> WRITEBACK()
	:: else ->
		atomic { !inval_ex[s] && !inval_sh[s] -> inval_ex[s] = me };
		d_step { change_begin() };
		ZAP(s)
	fi;
again:	EMPTY();
	if
	:: y == 1 ->
		d_step { change_begin(); y = 2 };
		disk[s] = !disk[s];
		if
		:: nrpages[s] -> goto again
		:: else
		fi
	:: y == 0 -> disk[s] = !disk[s]; inval_ex[s] = 0
	:: else
	fi;
	d_step { change_end(); i_rwsem[s] = 0; y = 0 }
}

/* ---- merge ---- */

/*
 * After lock, with nowait.  out: F, locked, and A, its alias if it is a root;
 * or 0 if refused
 */
inline PAGE_GET(F, A)
{
	if
	:: nowait == 1 && !a ->
		GET_ENTRY();
		ent = 0;
#ifdef BUG_MERGE_WAITS
		atomic { !lk[g] -> lk[g] = (g -> me : 0) };
#else
		d_step {
			if
			:: g && lk[g] -> put(g); g = 0
			:: g && !lk[g] -> lk[g] = me
			:: else
			fi
		};
#endif
		d_step {
			if
			:: g && (map[g] != s + 1 || !upt[g]) ->
				unlock(g); put(g); g = 0
			:: else
			fi;
			F = g;
			g = 0
		}
	:: else -> d_step { F = f; f = 0; A = a; a = 0 }
	fi;
	nowait = 0
}

#ifdef BUG_MERGE_DIRTY
#define written(f) 0
#else
#define written(f) (drt[f] || wb[f])
#endif

inline ISOLATE(Q, F)
{
	ok = !written(F);
	d_step { ok = ok && (ref[F] == mapcount(F) + 2) };
	if
	:: ok ->
		if
		:: mapcount(F) -> ZAP(Q)
		:: else
		fi;
		d_step { ok = !mapcount(F) && !written(F) }
	:: else
	fi
}

#ifdef BUG_NO_FREEZE
#define can_freeze(F) 1
#else
#define can_freeze(F) (ref[F] == 2)
#endif
#ifdef BUG_NO_COMPARE
#define equal(F, EQ) 1
#else
#define equal(F, EQ) (!(EQ) || val[F] == val[EQ])
#endif

/* If ok, F is frozen (x: its references) and has left page Q to alias A. */
inline REPLACE(Q, F, A, X, EQ)
{
	d_step {
		ok = can_freeze(F);
		x = (ok -> ref[F] : 0);
		ref[F] = (ok -> 0 : ref[F])
	};
	if
	:: ok ->
		d_step {
			ok = !written(F) && equal(F, EQ);
			ref[F] = (ok -> 0 : x);
			x = (ok -> x : 0)
		};
		if
		:: ok -> d_step {
			root_of(A) = X;
			rt_list[X] = rt_list[X] | bit_of(A);
			slot[Q] = A;
			map[F] = 0;
#ifdef BUG_NOT_COUNTED
			nrpages[Q]--;
#endif
			x = x - 1 }
		:: else
		fi
	:: else
	fi
}

inline MAKE_ROOT(Q, F, A)
{
	atomic {
		alloc_alias(A);
		alloc_root(q);
		ok = A && q;
		rt_folio[q] = (ok -> F : 0)
	};
	if
	:: ok -> REPLACE(Q, F, A, q, 0)
	:: else
	fi;
	d_step {
		if
		:: ok ->
			map[F] = q;
			prv[F] = q;
			ref[F] = x + 2;
			x = 0;
			assert(slot_ok(Q))
		:: else ->
			/* Nobody has seen them. */
			if
			:: A -> st[A - ALIAS] = 0; A = 0
			:: else
			fi;
			if
			:: q -> st[q] = 0; rt_folio[q] = 0
			:: else
			fi
		fi;
		q = 0
	}
}

inline JOIN(FT, Q, F)
{
	atomic {
		if
		:: alloc_alias(a)
		:: skip
		fi;
		ok = (a != 0)
	};
	if
	:: ok -> REPLACE(Q, F, a, prv[FT], FT)
	:: else
	fi;
	d_step {
		if
		:: ok -> ref[F] = x; x = 0; assert(slot_ok(Q))
		:: !ok && a -> st[a - ALIAS] = 0
		:: else
		fi;
		a = 0
	}
}

/* From page 1 - s and page s: f1 and f2, with their aliases a1 and a2 */
inline MERGE_LOCKED()
{
	if
	:: a1 && a2 ->
		if
		:: val[f1] == val[f2] ->
			/* ksm_ext_move() */
#ifndef BUG_MOVE_NO_ZAP
			ZAP(s);
#endif
			d_step {
				r = prv[f2];
				unlink(a2);
				root_of(a2) = prv[f1];
				rt_list[prv[f1]] = rt_list[prv[f1]] | bit_of(a2);
#ifndef BUG_MOVE_NO_ZAP
				assert(slot_ok(s))
#endif
			};
			if
			:: !rt_list[r] -> FREE_ROOT(r, f2)
			:: else
			fi;
			r = 0
		:: else
		fi
	:: else ->
		assert(!a2);
		ISOLATE(s, f2);
		if
		:: ok && !a1 ->
			y = 1;
			ISOLATE(1 - s, f1);
			if
			:: ok -> MAKE_ROOT(1 - s, f1, a1)
			:: else
			fi
		:: else
		fi;
		if
		:: ok ->
			JOIN(f1, s, f2);
			if
			:: !ok && y -> MOVE_BACK(1 - s, a1, f1)
			:: else
			fi
		:: else
		fi;
		y = 0
	fi;
	ok = 0
}

inline MERGE()
{
	atomic {
		ok = !inval_ex[0] && !inval_ex[1];
		inval_sh[0] = inval_sh[0] + ok;
		inval_sh[1] = inval_sh[1] + ok
	};
	if
	:: ok ->
		ok = 0;
		nowait = 1;
		CALL(lock, 4);
		PAGE_GET(f1, a1);
		s = 1 - s;
		if
		:: f1 ->
			nowait = 1;
			CALL(lock, 5);
			PAGE_GET(f2, a2)
		:: else
		fi;
		if
		:: f1 && f2 ->
			if
			:: d_step { a2 && !a1 ->
				x = f1; f1 = f2; f2 = x; x = 0;
				a1 = a2; a2 = 0;
				s = 1 - s }
			:: else
			fi;
			MERGE_LOCKED();
			unlock_put(f2)
		:: else
		fi;
		if
		:: f1 -> unlock_put(f1)
		:: else
		fi;
		d_step { inval_sh[0]--; inval_sh[1]--; a1 = 0; a2 = 0 }
	:: else
	fi
}

inline UNMERGE()
{
	CALL(brk, 5);
	if
	:: g -> unlock_put(g)
	:: else
	fi;
	if
	:: nomem -> nomem = 0; CALL(drop, 3)
	:: else
	fi
}

/* ---- reclaim and migration ---- */

/* What rmap_walk() finds */
#define aliased(s, f) (prv[f] && slot[s] >= ALIAS && \
		       root_of(slot[s]) == prv[f])
#define covers(s, f) (map[f] == (s) + 1 || aliased(s, f))

#define on_lru(f) (ref[f] && !(iso & (1 << (f))) && map[f] && \
		   (is_root(f) || slot[map[f] - 1] == (f)))

#define any_on_lru \
	(on_lru(1) || on_lru(2) || on_lru(3) || on_lru(4) || on_lru(5) || \
	 on_lru(6))

inline isolate_from_lru()
{
	if
	:: on_lru(1) -> k = 1
	:: on_lru(2) -> k = 2
	:: on_lru(3) -> k = 3
	:: on_lru(4) -> k = 4
	:: on_lru(5) -> k = 5
	:: on_lru(6) -> k = 6
	fi;
	ref[k]++;
	iso = iso | (1 << k)
}

inline putback_lru()
{
	iso = iso & ~(1 << k);
	put(k)
}

/* The page table entry goes now; what the TLB holds goes later, in a batch. */
inline try_to_unmap(Q, BITS)
{
	d_step {
		if
		:: covers(Q, k) && maps(Q, k) ->
			drt[k] = drt[k] || ((pte[Q] & PTE_D) != 0);
			pte[Q] = (BITS);
			ref[k]--
		:: else
		fi
	}
}

inline try_to_unmap_flush()
{
	d_step {
		if
		:: F_OF(tlb[0]) == k -> flush(0)
		:: else
		fi;
		if
		:: F_OF(tlb[1]) == k -> flush(1)
		:: else
		fi
	}
}

/*
 * A page that is the file's own leaves it while a TLB may still hold it.  Who
 * loads it through that entry sees bytes that may be old by now, until the
 * reclaimer flushes.  Linux does that with or without ksm_ext, so it is
 * excused, but not what anybody else leaves in the TLB, nor an entry for a root:
 * ksm_ext_release_folio() flushes before it empties the slots.
 */
#ifdef BUG_NO_EXCUSE
#define stale_by_reclaim(Q) van[Q]
#else
#define stale_by_reclaim(Q) (tlb[Q] && F_OF(tlb[Q]) == k)
#endif

inline release_alias(Q)
{
	d_step {
		if
		:: aliased(Q, k) ->
			x = slot[Q];
			empty_slot(Q, x);
			kfree_rcu(x - ALIAS);
			x = 0;
			assert(slot_ok(Q))
		:: else
		fi
	}
}

inline release_folio()
{
#ifndef BUG_RELEASE_MAPPED
	d_step { ok = !mapcount(k) && ref[k] <= 3 };
#endif
	if
	:: ok ->
#ifndef BUG_RELEASE_NO_FLUSH
		try_to_unmap_flush();
#endif
#ifndef BUG_RELEASE_KEEPS
		release_alias(0);
		release_alias(1);
#endif
		rt_folio[prv[k]] = 0;
		d_step { prv[k] = 0; put(k) }
	:: else
	fi
}

inline RECLAIM()
{
	d_step {
		ok = !lk[k];
		lk[k] = (ok -> me : lk[k])
	};
	if
	:: !ok -> d_step { putback_lru() }
	:: else ->
		ok = !wb[k];
#ifndef BUG_RELEASE_MAPPED
		if
		:: ok ->
			try_to_unmap(0, 0);
			try_to_unmap(1, 0);
			d_step { ok = map[k] && !mapcount(k) && !drt[k] }
		:: else
		fi;
#endif
		if
		:: ok && prv[k] -> release_folio()
		:: else
		fi;
		/* __remove_mapping() */
		d_step {
#ifdef BUG_REMOVE_PINNED
			if
			:: ok -> ref[k] = 0
#else
			ok = ok && ref[k] == 2;
			if
			:: ok -> ref[k] = 0
#endif
			:: else
			fi
		};
		d_step {
			if
			:: ok && drt[k] -> ref[k] = 2; ok = 0
			:: else
			fi
		};
		if
		:: ok ->
			d_step {
				if
				:: is_root(k) -> kfree_rcu(map[k]); map[k] = 0
				:: else ->
					x = map[k] - 1;
					van[x] = stale_by_reclaim(x);
					remove_folio(x, k);
					assert(slot_ok(x));
					x = 0
				fi
			};
			try_to_unmap_flush();
			d_step {
				unlock(k);
				iso = iso & ~(1 << k);
				free_folio(k)
			}
		:: else ->
			d_step { unlock(k) };
			try_to_unmap_flush();
			d_step { putback_lru() }
		fi
	fi;
	d_step { ok = 0; k = 0 }
}

/* F is what k has become, or k */
inline remove_migration_pte(Q, F)
{
	d_step {
		if
		:: (pte[Q] & PTE_M) && F_OF(pte[Q]) == k && covers(Q, F) ->
			pte[Q] = F | (pte[Q] & PTE_W);
			ref[F]++;
			assert(slot_ok(Q))
		:: else
		fi
	}
}

inline MIGRATE()
{
	atomic { !lk[k] -> lk[k] = me };
	atomic {
		alloc(n);
		ok = n && map[k];
		lk[n] = (n -> me : 0)
	};
	if
	:: ok ->
		!wb[k];
		try_to_unmap(0, PTE_M | (pte[0] & ~PTE_D));
		try_to_unmap(1, PTE_M | (pte[1] & ~PTE_D));
		try_to_unmap_flush();
#ifdef BUG_MIGRATE_FALLBACK
		if
		:: prv[k] -> release_folio()
		:: else
		fi;
#endif
		d_step { val[n] = val[k]; upt[n] = upt[k] };
		d_step {
			/* __folio_migrate_mapping() */
			ok = !mapcount(k) && ref[k] == 2 + (prv[k] != 0);
			if
			:: ok ->
				x = ref[k];
				ref[k] = 0;
				map[n] = map[k];
				ref[n]++;
				drt[n] = drt[k];
				drt[k] = 0
			:: else
			fi
		};
		if
		:: ok ->
			d_step {
				if
				:: !is_root(n) -> slot[map[n] - 1] = n
				:: else
				fi
			};
			d_step { ref[k] = x - 1; x = 0 };
			d_step {
				if
				:: prv[k] ->
					prv[n] = prv[k];
					ref[n]++;
					prv[k] = 0;
					put(k)
				:: else
				fi
			};
#ifndef BUG_MIGRATE_KEEPS_ROOT
			d_step {
				if
				:: prv[n] -> rt_folio[prv[n]] = n
				:: else
				fi
			};
#endif
			map[k] = 0;
			remove_migration_pte(0, n);
			remove_migration_pte(1, n)
		:: else ->
			remove_migration_pte(0, k);
			remove_migration_pte(1, k)
		fi
	:: else
	fi;
	d_step {
		if
		:: n -> unlock(n); put(n); n = 0
		:: else
		fi;
		unlock(k);
		putback_lru();
		k = 0;
		ok = 0
	}
}

/* ---- threads ---- */

/* See "Left out" */
#define STORES(Q) (!((ANY & T) && (ANY & (S | P))) || Q == 1)

#define BEGIN(group) todo && (ops & (group)) -> busy++; todo--
/* With pages swapped it is another start, so one thread needs no choice. */
#define PAGE if :: s = 0 :: t || !STORES(0) -> s = 1 fi
#define PAGE_TO_STORE if :: STORES(0) -> s = 0 :: t || !STORES(0) -> s = 1 fi

inline end_op()
{
	atomic {
		assert(!a && !f && !g && !n && !x && !y && !e && !r && !ent &&
		       !ok && !nomem && !rd[t] && !(rcu & (1 << t)));
		busy--;
		if
		:: !busy -> check_quiet()
		:: else
		fi;
		s = 0
	}
}

proctype thread(byte t; byte ops; byte todo)
{
	byte s;				/* the page */
	byte e, ent;			/* what its slot held */
	byte f, g, n, f1, f2, k;	/* folios */
	byte a, a1, a2;			/* aliases */
	byte r, q;			/* roots */
	byte x, y, i, nowait;
	bit ok, nomem, wr;
	byte lock_ret, brk_ret, drop_ret, add_ret, fault_ret;

end:	do
#if ANY & M
	:: atomic { BEGIN(M); PAGE }; MERGE(); end_op()
	:: atomic { BEGIN(M); PAGE }; UNMERGE(); end_op()
#endif
#if ANY & R
	:: atomic { BEGIN(R); PAGE }; READ(); end_op()
	:: atomic { BEGIN(R); PAGE }; LONGPIN(); end_op()
#endif
#if ANY & L
	:: atomic { BEGIN(L); PAGE }; MREAD(); end_op()
#endif
#if ANY & W
	:: atomic { BEGIN(W); PAGE }; WRITE(); end_op()
#endif
#if ANY & S
	:: atomic { BEGIN(S); PAGE_TO_STORE }; MWRITE(); end_op()
#endif
#if ANY & P
	:: atomic { BEGIN(P); PAGE_TO_STORE }; WRITEPIN(); end_op()
	:: atomic { BEGIN(P); PAGE }; ZAP(s); end_op()
	:: atomic { BEGIN(P); PAGE }; WRITEBACK(); end_op()
#endif
#if ANY & T
	:: atomic { BEGIN(T); PAGE; if :: skip :: !s -> y = 1 fi };
		CHANGE(); end_op()
#endif
#if ANY & K
	:: atomic { any_on_lru && BEGIN(K); isolate_from_lru() }; RECLAIM(); end_op()
	:: atomic { any_on_lru && BEGIN(K); isolate_from_lru() }; MIGRATE(); end_op()
#endif
	:: !todo -> break
	od;
	goto done;

#if ANY & (M | R | W | L | S | T)
lock:	lock_code();
#endif
#if ANY & (M | R | W | L | S)
brk:	break_code();
#endif
#if ANY & (M | R | W | L | S | T)
drop:	drop_code();
#endif
#if ANY & (R | W | L | S)
add:	add_code();
#endif
#if ANY & (L | S)
fault:	fault_code();
#endif
done:	skip
}

/* Any state that the files can be in while all is quiet */
inline start_page(Q, F, A, X)
{
	if
	:: slot[Q] = 0
	:: slot[Q] = F; map[F] = Q + 1
	:: slot[Q] = A; map[F] = X; prv[F] = X; st[X] = LIVE; rt_folio[X] = F
	:: Q && slot[0] >= ALIAS && cur[0] == cur[1] ->
		slot[Q] = A; F = 1; X = ROOT + 1
	fi;
	if
	:: slot[Q] -> upt[F] = 1; val[F] = cur[Q]; nrpages[Q] = 1
	:: else
	fi;
	if
	:: slot[Q] >= ALIAS ->
		st[A - ALIAS] = LIVE;
		root_of(A) = X;
		rt_list[X] = rt_list[X] | bit_of(A)
	:: else
	fi;
	if
	:: skip
	:: slot[Q] -> pte[Q] = F; tlb[Q] = F
	:: slot[Q] == F && (ANY & (S | P)) && STORES(Q) ->
		pte[Q] = F | PTE_W | PTE_D; tlb[Q] = F | PTE_W; drt[F] = 1
	fi
}

init {
	byte f, a, x, i;

	atomic {
#if ANY & M
		if
		:: skip
		:: cur[1] = 1; disk[1] = 1
		fi;
#endif
		f = 1; a = ALIAS; x = ROOT + 1;
		start_page(0, f, a, x);
		f = 2; a = ALIAS + 1; x = ROOT + 2;
		start_page(1, f, a, x);
		i = 1;
		do
		:: i <= NF ->
			ref[i] = (map[i] != 0) + (prv[i] != 0) + mapcount(i);
			i++
		:: else -> break
		od;
		i = 0;
		check_quiet();
		f = 0; a = 0; x = 0;
		run thread(0, G0, N0);
		run thread(1, G1, N1);
		run thread(2, G2, N2)
	}
}
