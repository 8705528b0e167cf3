//! Guest boot logic (pygrub, eliloader, domUloader). Nothing here yet: it arrives with indirect boot..
