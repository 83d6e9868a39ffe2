# SPDX-License-Identifier: GPL-2.0
#
# gnuplot: the page cache of a guest over time, from the files that "in-guest"
# has left in the directory "dir".

set terminal svg size 760,400 font "sans-serif,12" background "white"
set xlabel "seconds"
set ylabel "MiB"
set yrange [0:*]
set key outside bottom center horizontal
set border 3
set tics nomirror
set style fill solid 0.35 noborder

# A line and a word where something begins
stats dir."/samples" using 1:($2 + $3) nooutput
set yrange [0:1.25 * STATS_max_y]
set xrange [0:STATS_max_x]

plot dir."/samples" using 1:2 with filledcurves y=0 lc rgb "#4477aa" \
		title "page cache (Cached)", \
	"" using 1:2:($2 + $3) with filledcurves lc rgb "#ee6677" \
		title "saved by merging", \
	dir."/marks" using 1:(0):(0):(1.25 * STATS_max_y) with vectors \
		nohead lc rgb "#999999" notitle, \
	"" using 1:(1.23 * STATS_max_y):2 with labels rotate by 90 right \
		offset 0.6,0 notitle
